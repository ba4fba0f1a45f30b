"""Routes that read JSON strictly, and the responses that the OpenAPI document tells of."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute

from interleaf.server.errors import bad_request

decode = msgspec.json.Decoder().decode

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

ANTHROPIC_ERROR_SCHEMA = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


class JsonRequest(Request):
    """A request whose JSON must be JSON: no NaN, no halves of characters, no endless nesting."""

    async def json(self) -> Any:
        try:
            return decode(await self.body())
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise bad_request(f"The body is not valid JSON: {error}.", code="invalid_json") from None


class JsonRoute(APIRoute):
    """A route whose requests are `JsonRequest`s."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return strict


def responses(
    kind: type[msgspec.Struct] | None = None,
    stream: bool = False,
    media_type: str | None = None,
    error_schema: dict[str, Any] = ERROR_SCHEMA,
) -> dict[int | str, dict[str, Any]]:
    """What an endpoint answers, for the OpenAPI document.

    Args:
        kind: of the JSON object that it answers with.
        stream: it answers with events as well.
        media_type: of what it answers with, where that is no object of a kind.
    """
    content: dict[str, Any] = {}
    if kind is not None:
        (schema,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
        content["application/json"] = {"schema": _resolved(schema, components)}
    if stream:
        content["text/event-stream"] = {"schema": {}}
    if media_type is not None:
        content[media_type] = {"schema": {}}
    error = {"description": "Refused", "content": {"application/json": {"schema": error_schema}}}
    return {200: {"description": "Done", "content": content}, "4XX": error, "5XX": error}


def _resolved(schema: Any, components: dict[str, Any]) -> Any:
    """The schema with its references written out, since it stands for itself."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _resolved(components[schema["$ref"].rsplit("/", 1)[1]], components)
        return {key: _resolved(value, components) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_resolved(value, components) for value in schema]
    return schema
