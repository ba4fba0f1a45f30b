"""JSON schemas of all kinds, written and drawn, for tests of structured output."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer", "minimum": 0, "maximum": 9},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["value", "next"],
    "additionalProperties": False,
}

WRITTEN: list[Schema] = [
    {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "tags": {"$ref": "#/definitions/tags"}},
        "required": ["tags"],
        "additionalProperties": False,
        "definitions": {"tags": {"type": "array", "items": {"enum": ["a", "b", 3, None, True]}, "maxItems": 4}},
    },
    {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "size": {"type": "integer", "minimum": 1, "maximum": 40}},
                "required": ["kind", "size"],
                "additionalProperties": False,
            }
            for kind in ("circle", "square")
        ]
    },
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": {"a": [1]}}], "items": False, "minItems": 2},
    {"type": "object", "patternProperties": {"^[a-c]{1,3}$": {"type": "boolean"}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer", "maximum": 5, "minimum": -5}, "maxProperties": 3},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 70}, {"multipleOf": 5}]},
    {"type": ["string", "null"], "pattern": "^[A-Z]{2}-\\d{1,4}$"},
    {"enum": ["naïve", "日本語", 'a"b\\c', "line\nbreak", {"x": [1, 2.5]}]},
    {"type": "number", "exclusiveMinimum": -1.5, "exclusiveMaximum": 2.25},
    *({"type": "string", "format": name} for name in ("date", "time", "ipv4", "ipv6", "uuid", "email", "date-time")),
]


def drawn(seed: int) -> Schema:
    """A schema made of the same parts, nested at random."""
    rng = random.Random(seed)
    definitions: Schema = {}
    schema = _draw(rng, 3, definitions)
    return {**schema, "$defs": definitions} if definitions else schema


def _draw(rng: random.Random, depth: int, definitions: Schema) -> Schema:
    if depth == 0 or rng.random() < 0.3:
        return _leaf(rng)
    kind = rng.choice(["object", "object", "array", "union", "reference"])
    if kind == "object":
        names = rng.sample(["name", "id", "größe", "a b", 'q"', "list", "x.y"], rng.randint(1, 4))
        properties = {name: _draw(rng, depth - 1, definitions) for name in names}
        required = [name for name in names if rng.random() < 0.6]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        least = rng.randint(0, 2)
        items = _draw(rng, depth - 1, definitions)
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + rng.randint(0, 2)}
    if kind == "union":
        return {"anyOf": [_draw(rng, depth - 1, definitions) for _ in range(rng.randint(1, 3))]}
    name = f"d{len(definitions)}"
    definitions[name] = {}
    definitions[name] = _draw(rng, depth - 1, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _leaf(rng: random.Random) -> Schema:
    low = rng.randint(-1000, 1000)
    return rng.choice(
        [
            {"type": "string", "minLength": 1, "maxLength": rng.randint(1, 10)},
            {
                "type": "string",
                "pattern": rng.choice(["^[a-z]{1,6}$", "^(foo|ba[rz])+\\d?$", "^x\\w{0,4}y$"]),
                "maxLength": 12,
            },
            {"type": "string", "format": rng.choice(["date", "uuid", "ipv4"])},
            {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 3000)},
            {"type": "number", "minimum": low / 8, "maximum": low / 8 + 100},
            {"type": "boolean"},
            {"type": "null"},
            {"const": rng.choice(["fixed", 7, 1.5, None, [1, {"a": "b"}]])},
            {"enum": rng.sample(["red", "green", "blue", 1, 2, None, False], 3)},
        ]
    )
