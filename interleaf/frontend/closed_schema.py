"""JSON schemas with their open ends closed: objects have the properties that they are said to have, and no others.

JSON Schema lets an object have any further properties unless `additionalProperties` speaks of it. Who writes a schema
to be filled in by a model rarely means that, and small models, which may invent properties, do so until their tokens
end. So such objects are closed, as OpenAI's strict mode demands and as vLLM's usual backend does. What fits a closed
schema fits the open one as well; where that could fail, because several schemas speak of one object (`allOf`, `oneOf`,
`not`, ...), they stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from interleaf.errors import GrammarError

MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLES = (
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
MEETING = ("allOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "anyOf", "$ref")
"""Keywords that put further schemas on the same value."""
SPEAKS = ("additionalProperties", "patternProperties", "unevaluatedProperties", "$dynamicRef", "$recursiveRef")


def closed_schema(root: dict[str, Any]) -> dict[str, Any]:
    """A copy in which objects are closed; what else is wrong with a schema is left for others to find.

    Raises:
        GrammarError: it is nested too deeply.
    """
    try:
        closed: dict[str, Any] = _close(root, _meeting(root))
    except RecursionError:
        raise GrammarError("The JSON schema is nested too deeply.", "json") from None
    return closed


def _close(schema: Any, kept: set[int]) -> Any:
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for name in MAPS:
        if isinstance(schema.get(name), dict):
            closed[name] = {key: _close(one, kept) for key, one in schema[name].items()}
    for name in (*LISTS, *SINGLES):
        value = schema.get(name)
        if isinstance(value, list):
            closed[name] = [_close(one, kept) for one in value]
        elif isinstance(value, dict):
            closed[name] = _close(value, kept)
    if id(schema) not in kept and _can_be_closed(schema):
        closed["additionalProperties"] = False
    return closed


def _can_be_closed(schema: dict[str, Any]) -> bool:
    """Whether it lists its properties, says nothing of further ones and needs none."""
    properties, required, least = schema.get("properties"), schema.get("required", []), schema.get("minProperties", 0)
    return (
        isinstance(properties, dict)
        and bool(properties)
        and not any(name in schema for name in SPEAKS)
        and isinstance(required, list)
        and all(isinstance(name, str) and name in properties for name in required)
        and isinstance(least, int)
        and least <= len(properties)
    )


def _meeting(root: dict[str, Any]) -> set[int]:
    """The schemas, by identity, whose values other schemas speak of as well."""
    kept: set[int] = set()
    for schema in _subschemas(root):
        if any(name in schema for name in MEETING) and not _is_another(schema):
            _keep(schema, root, kept)
    return kept


def _is_another(schema: dict[str, Any]) -> bool:
    """Whether it only stands for another schema, or for any one of several."""
    [name, *more] = (name for name in MEETING if name in schema)
    if more or "properties" in schema:
        return False
    return name in ("anyOf", "$ref") or (name in ("allOf", "oneOf") and len(_branches(schema, name)) == 1)


def _keep(schema: Any, root: dict[str, Any], kept: set[int]) -> None:
    """Keep a schema, and those that it puts on the same value, as they are."""
    if not isinstance(schema, dict) or id(schema) in kept:
        return
    kept.add(id(schema))
    _keep(_target(schema.get("$ref"), root), root, kept)
    for name in MEETING:
        for one in _branches(schema, name):
            _keep(one, root, kept)


def _branches(schema: dict[str, Any], name: str) -> list[Any]:
    value = schema.get(name)
    if name == "dependentSchemas" and isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []


def _target(reference: Any, root: dict[str, Any]) -> Any:
    """What a reference within the document leads to; None if it leads nowhere."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: Any = root
    for part in filter(None, reference[1:].split("/")):
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _subschemas(root: Any) -> Iterator[dict[str, Any]]:
    """A schema and all those in it."""
    todo = [root]
    while todo:
        schema = todo.pop()
        if isinstance(schema, dict):
            yield schema
            for name in MAPS:
                value = schema.get(name)
                todo += value.values() if isinstance(value, dict) else ()
            for name in (*LISTS, *SINGLES):
                value = schema.get(name)
                todo += value if isinstance(value, list) else [value]
