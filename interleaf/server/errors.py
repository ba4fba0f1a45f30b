"""Every way in which a request can be refused, as HTTP status and body.

Our exceptions, pydantic's and the framework's become one `ApiError` here, which is written in the
form of the API that was called: OpenAI's `{"error": {message, type, param, code}}`, or Anthropic's.
Messages of exceptions that are not ours are logged and never sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException, RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import BaseRoute, Match

from interleaf.errors import (
    DeadlineExceededError,
    EngineDeadError,
    EngineRestartingError,
    InterleafError,
    OverloadedError,
    PromptTooLongError,
    RequestError,
    RequestFailedError,
)
from interleaf.observe import get_logger

M = TypeVar("M", bound=BaseModel)

logger = get_logger(__name__)

MAX_MESSAGE_CHARS = 1000
"""Messages that quote a request's values are cut to this."""

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "server_error",
    501: "invalid_request_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
ANTHROPIC_TYPES = {413: "request_too_large", 500: "api_error", 503: "overloaded_error"}
ANTHROPIC_PREFIX = "/v1/messages"

JSON_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_attributes_type": "an object",
    "model_type": "an object",
}
"""pydantic speaks of Python's types; clients know JSON's."""
PLAIN_TYPES = ("str", "int", "float", "bool")


class ApiError(HTTPException):
    """A refusal, with what its body says."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code=status, detail=message, headers=dict(headers or {}))
        self.message = message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "..."
        self.param = param
        self.code = code

    def body(self, anthropic: bool = False) -> dict[str, Any]:
        """The object that tells of it."""
        if anthropic:
            kind = ANTHROPIC_TYPES.get(self.status_code, TYPES.get(self.status_code, "api_error"))
            return {"type": "error", "error": {"type": kind, "message": printable(self.message)}}
        return {
            "error": {
                "message": printable(self.message),
                "type": TYPES.get(self.status_code, "invalid_request_error"),
                "param": None if self.param is None else printable(self.param),
                "code": self.code,
            }
        }


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A refusal of what the request says."""
    return ApiError(400, message, param, code)


def api_error(error: BaseException) -> ApiError:
    """What a client is told of an exception; those that are no fault of the request are logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OverloadedError):
        return ApiError(
            429, str(error), code="rate_limit_exceeded", headers={"Retry-After": f"{max(1, round(error.retry_after))}"}
        )
    if isinstance(error, PromptTooLongError):
        return ApiError(400, str(error), error.param, "context_length_exceeded")
    if isinstance(error, RequestError):
        return ApiError(400, str(error), error.param)
    if isinstance(error, (EngineDeadError, EngineRestartingError)):
        logger.warning("A request found no engine: %s", error)
        return ApiError(
            503,
            "The engine is not running at the moment: try again shortly.",
            code="engine_unavailable",
            headers={"Retry-After": "2"},
        )
    if isinstance(error, RequestFailedError):
        logger.warning("A request could not be finished: %s", error)
        return ApiError(500, "The engine failed on this request.", code="internal_error")
    if isinstance(error, DeadlineExceededError):
        return ApiError(504, "The request did not end within its time.", code="timeout")
    if isinstance(error, RequestValidationError):
        return _refusal(error.errors())
    if isinstance(error, StarletteHTTPException):
        return _from_framework(error)
    logger.error("A request failed", exc_info=error)
    return ApiError(500, "The server failed on this request; its log tells why.", code="internal_error")


def error_response(error: BaseException, path: str) -> Response:
    """The response that tells of an exception to a request for `path`."""
    told = api_error(error)
    return Response(
        msgspec.json.encode(told.body(anthropic=is_anthropic(path))),
        told.status_code,
        headers=told.headers,
        media_type="application/json",
    )


def is_anthropic(path: str) -> bool:
    """Whether requests for this path expect Anthropic's form of errors."""
    return path == ANTHROPIC_PREFIX or path.startswith(ANTHROPIC_PREFIX + "/")


def install_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Have the app, which has these routes, answer with these errors."""

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, StarletteHTTPException) and error.status_code == 405:
            error = StarletteHTTPException(405, headers={"Allow": ", ".join(_methods(request, routes))})
        return error_response(error, request.scope["path"].removeprefix(request.scope.get("root_path", "")))

    for kind in (StarletteHTTPException, RequestValidationError, InterleafError):
        app.add_exception_handler(kind, handle)


def _methods(request: Request, routes: Sequence[BaseRoute]) -> list[str]:
    """What the request's path takes; the framework names the methods of its first route only."""
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})


def printable(text: str) -> str:
    """The text with whatever UTF-8 cannot hold replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def validated(kind: type[M], value: Any) -> M:
    """An object of a request's model, made of parts of a request.

    Raises:
        ApiError: they don't fit.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _refusal([{**complaint, "loc": ("body", *complaint["loc"])} for complaint in error.errors()]) from None


def _refusal(complaints: Sequence[Any]) -> ApiError:
    """What pydantic's complaints come to: the first one, or of a choice of types the one that got furthest."""
    first = complaints[0]
    related = [one for one in complaints if one["loc"][: len(first["loc"]) - 1] == first["loc"][:-1]]
    chosen = max(related, key=lambda one: len(_path(one)))
    path = _path(chosen)
    param = ".".join(path) or None
    kind = chosen["type"]
    cause = chosen.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):
        return ApiError(400, str(cause), cause.param)
    if not path and first["loc"][0] == "body":
        return bad_request("The body must be a JSON object, sent with Content-Type: application/json.")
    if kind == "missing":
        return ApiError(400, f"{param}: This field is required.", param, "missing_required_parameter")
    types = [JSON_TYPES.get(one["type"]) for one in related if _path(one) == path]
    expected = " or ".join(dict.fromkeys(one for one in types if one is not None))
    message = chosen["msg"].rstrip(".") if None in types else f"It must be {expected}"
    return ApiError(400, f"{param}: {message}.", param)


def _path(complaint: Any) -> list[str]:
    """Where in the request it is, without pydantic's names for the members of a choice of types."""
    return [str(part) for part in complaint["loc"][1:] if not _is_member(part)]


def _is_member(part: str | int) -> bool:
    return isinstance(part, str) and (part in PLAIN_TYPES or "[" in part or part[:1].isupper())


def _from_framework(error: StarletteHTTPException) -> ApiError:
    messages = {
        404: "There is nothing at this path.",
        405: "This path does not take this method.",
        400: "The body cannot be read.",
    }
    message = messages.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, headers=error.headers)
