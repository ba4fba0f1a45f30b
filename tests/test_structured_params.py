"""StructuredOutputsParams: one constraint, of the right type and size, and the error names the field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from interleaf import GuidedDecodingParams
from interleaf.errors import ParameterError
from interleaf.params import SamplingParams
from interleaf.structured_params import MAX_GRAMMAR_CHARACTERS, MAX_SCHEMA_DEPTH, StructuredOutputsParams

GOOD: list[dict[str, Any]] = [
    {"json": {"type": "object"}},
    {"json": '{"type": "object"}', "disable_any_whitespace": True},
    {"regex": "a+"},
    {"choice": ["yes", "no"]},
    {"choice": ("yes", "no")},
    {"grammar": 'start: "a"'},
    {"json_object": True, "whitespace_pattern": " ?"},
    {"structural_tag": {"type": "structural_tag", "format": {"type": "any_text"}}},
    {"regex": "a", "json_object": False},
]


@pytest.mark.parametrize("fields", GOOD, ids=lambda fields: next(iter(fields)))
def test_good_ones_survive_the_wire(fields: dict[str, Any]) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**fields))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
    assert params.clone() == params


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "structured_outputs"),
        ({"json_object": False}, "structured_outputs"),
        ({"json": {}, "regex": "a"}, "structured_outputs"),
        ({"choice": []}, "choice"),
        ({"choice": "yes"}, "choice"),
        ({"choice": [1]}, "choice"),
        ({"json": 5}, "json"),
        ({"json": ["a"]}, "json"),
        ({"regex": b"a"}, "regex"),
        ({"grammar": 1}, "grammar"),
        ({"json_object": 1}, "json_object"),
        ({"json": {}, "disable_any_whitespace": None}, "disable_any_whitespace"),
        ({"regex": "a" * (MAX_GRAMMAR_CHARACTERS + 1)}, "regex"),
        ({"choice": ["a" * MAX_GRAMMAR_CHARACTERS, "b"]}, "choice"),
    ],
)
def test_bad_ones_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ParameterError) as caught:
        StructuredOutputsParams(**fields)
    assert caught.value.param == param


def test_depth_is_limited() -> None:
    def nested(depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string"}
        for _ in range(depth - 1):
            schema = {"items": schema}
        return schema

    assert StructuredOutputsParams(json=nested(MAX_SCHEMA_DEPTH)).constraint == "json"
    for depth in (MAX_SCHEMA_DEPTH + 1, 100_000):
        with pytest.raises(ParameterError, match="levels deep"):
            StructuredOutputsParams(json=nested(depth))


def test_number_of_parts_is_limited() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(60):
        schema = {"anyOf": [schema, schema]}
    with pytest.raises(ParameterError, match="parts"):
        StructuredOutputsParams(json=schema)


def test_the_older_name_is_the_same() -> None:
    guided = GuidedDecodingParams(regex="a+")
    assert SamplingParams(guided_decoding=guided) == SamplingParams(structured_outputs=guided)
    with pytest.raises(ParameterError, match="one of them"):
        SamplingParams(guided_decoding=guided, structured_outputs=guided)
    with pytest.raises(ParameterError, match="StructuredOutputsParams"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]
