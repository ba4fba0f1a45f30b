"""Schemas with objects closed: what fits them fits the open ones, and something always does."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import jsonschema
import pytest

from interleaf.errors import GrammarError
from interleaf.frontend.closed_schema import closed_schema

A: Any = {"type": "object", "properties": {"a": {"const": 1}}}
B: Any = {"type": "object", "properties": {"b": {"const": 1}}}
REQUIRES_A: Any = {**A, "required": ["a"]}

CLOSED: list[tuple[str, Any, Any]] = [
    ("an object", A, {**A, "additionalProperties": False}),
    ("in an array", {"items": A}, {"items": {**A, "additionalProperties": False}}),
    ("in an object", {"properties": {"x": A}}, None),
    ("in a choice", {"anyOf": [A, B]}, None),
    ("behind a reference", {"$ref": "#/$defs/A", "$defs": {"A": A}}, None),
    ("as pydantic once wrote it", {"properties": {"a": {"allOf": [{"$ref": "#/$defs/B"}]}}, "$defs": {"B": B}}, None),
    ("recursion", {"properties": {"a": {"const": 1}, "c": {"$ref": "#"}}}, None),
]
OPEN: list[tuple[str, Any]] = [
    ("no properties are listed", {"type": "object"}),
    ("properties are allowed", {**A, "additionalProperties": True}),
    ("properties are told by patterns", {**A, "patternProperties": {"^b": {"const": 1}}}),
    ("another one is required", {**A, "required": ["b"]}),
    ("more are required", {**A, "minProperties": 2}),
    ("two meet", {"allOf": [A, B]}),
    ("two meet, and both are needed", {"allOf": [REQUIRES_A, {**B, "required": ["b"]}]}),
    (
        "two meet behind references",
        {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}], "$defs": {"A": A, "B": B}},
    ),
    ("only one of them", {"oneOf": [A, {**B, "required": ["b"]}]}),
    ("not this one", {"not": REQUIRES_A}),
    ("properties beside a choice", {**A, "anyOf": [{"required": ["b"]}, {"required": ["a"]}]}),
    ("properties beside a reference", {**A, "$ref": "#/$defs/B", "$defs": {"B": {**B, "required": ["b"]}}}),
    ("a condition", {"if": REQUIRES_A, "then": {**B, "required": ["b"]}}),
    ("a choice within what meets", {"allOf": [{"anyOf": [A]}, {**B, "required": ["b"]}]}),
    ("two kinds of meeting", {"anyOf": [A], "$ref": "#/$defs/B", "$defs": {"B": {**B, "required": ["b"]}}}),
]
PARTS = [None, 1, {}, {"a": 1}, {"b": 1}]
VALUES: list[Any] = [*PARTS, [{"a": 1}], [{"a": 1, "b": 1}]]
VALUES += [
    {name: value for name, value in zip("abcx", values, strict=True) if value is not None}
    for values in itertools.product(PARTS, repeat=4)
]


@pytest.mark.parametrize("schema", [case[1] for case in (*CLOSED, *OPEN)], ids=[case[0] for case in (*CLOSED, *OPEN)])
def test_what_fits_the_closed_one_fits_the_open_one(schema: Any) -> None:
    before = copy.deepcopy(schema)
    closed = jsonschema.Draft202012Validator(closed_schema(schema))
    assert schema == before
    opened = jsonschema.Draft202012Validator(schema)
    fitting = [value for value in VALUES if closed.is_valid(value)]
    assert fitting and all(opened.is_valid(value) for value in fitting)


@pytest.mark.parametrize(("schema", "expected"), [case[1:] for case in CLOSED], ids=[case[0] for case in CLOSED])
def test_what_is_closed(schema: Any, expected: Any) -> None:
    closed = closed_schema(schema)
    assert expected is None or closed == expected
    validators = jsonschema.Draft202012Validator(schema), jsonschema.Draft202012Validator(closed)
    opened, limited = ([value for value in VALUES if one.is_valid(value)] for one in validators)
    assert len(limited) < len(opened)


@pytest.mark.parametrize("schema", [case[1] for case in OPEN], ids=[case[0] for case in OPEN])
def test_what_stays_as_it_is(schema: Any) -> None:
    assert closed_schema(schema) == schema


def test_values_and_names_are_no_schemas() -> None:
    schema = {
        "properties": {"properties": {"type": "object"}, "$ref": {"const": {"properties": {"a": 1}}}},
        "default": {"properties": {"b": 1}},
        "enum": [{"properties": {}}],
    }
    assert closed_schema(schema) == {**schema, "additionalProperties": False}


@pytest.mark.parametrize(
    "broken", [{"properties": 1}, {"allOf": 1}, {"$ref": 1}, {"$ref": "#/x", "required": 1}, {"anyOf": []}]
)
def test_what_is_no_schema_is_left_to_others(broken: Any) -> None:
    assert closed_schema(broken) == broken


def test_depth() -> None:
    schema: Any = A
    for _ in range(3000):
        schema = {"items": schema}
    with pytest.raises(GrammarError, match="deeply"):
        closed_schema(schema)
