"""Every field of SamplingParams: what it takes, what it refuses, and that the error names it."""

from __future__ import annotations

import copy
import math
from typing import Any

import msgspec
import pytest

from interleaf.errors import InterleafError, ParameterError
from interleaf.params import (
    MAX_N,
    MAX_SEED,
    MAX_STOP_STRINGS,
    BeamSearchParams,
    BeamSettings,
    RequestOutputKind,
    SamplingParams,
)
from interleaf.reasoning import ReasoningMarkers
from interleaf.structured_params import StructuredOutputsParams

HUGE = 2**31
NAN, INFINITY = math.nan, math.inf
NOT_A_NUMBER = [NAN, INFINITY, -INFINITY, True, False, "1", [1], None]
NOT_AN_INTEGER = [NAN, INFINITY, True, False, 1.0, 0.5, "1", [1]]
NOT_A_BOOL = [1, 0, "yes", None, 1.0]
NOT_TOKEN_IDS = ["12", [1.0], ["1"], [True], [-1], [None], 5, {1: 2}, (1, 2)]

GOOD: dict[str, list[Any]] = {
    "n": [1, 2, MAX_N],
    "presence_penalty": [-2, -2.0, 0, 2.0],
    "frequency_penalty": [-2, -2.0, 0, 2.0],
    "repetition_penalty": [1e-9, 0.5, 1, 2.0, 1000.0],
    "temperature": [0, 0.0, 1e-9, 0.7, 1, 2.0, 100.0],
    "top_p": [1e-9, 0.5, 1, 1.0],
    "top_k": [-1, 0, 1, HUGE - 1],
    "min_p": [0, 0.0, 0.5, 1, 1.0],
    "seed": [None, -1, 0, MAX_SEED, -MAX_SEED - 1],
    "stop": [None, [], "a", ["a", "bc"], ("a",), ["x"] * MAX_STOP_STRINGS],
    "stop_token_ids": [None, [], [0, 5]],
    "ignore_eos": [True, False],
    "max_tokens": [None, 1, HUGE - 1],
    "min_tokens": [0, 1, 16],
    "logprobs": [None, -1, 0, 5, True],
    "prompt_logprobs": [None, -1, 0, 5, True],
    "detokenize": [True, False],
    "skip_special_tokens": [True, False],
    "spaces_between_special_tokens": [True, False],
    "include_stop_str_in_output": [True, False],
    "output_kind": list(RequestOutputKind),
    "logit_bias": [None, {}, {5: 1.0}, {5: -100, 6: 100}, {"5": 1}],
    "allowed_token_ids": [None, [0], [1, 2]],
    "bad_words": [None, [], ["a", " b"]],
    "truncate_prompt_tokens": [None, -1, 1, 5],
    "extra_args": [None, {"a": 1}],
    "speculative": [None, True, False],
    "structured_outputs": [None, StructuredOutputsParams(regex="a")],
    "guided_decoding": [None, StructuredOutputsParams(regex="a")],
    "thinking_token_budget": [None, 0, 5],
    "reasoning_markers": [None, ReasoningMarkers([], [5])],
    "beam": [None, BeamSettings(1), BeamSettings(8, -1.5, "never")],
}

BAD: dict[str, list[Any]] = {
    "n": [0, -1, MAX_N + 1, None, *NOT_AN_INTEGER],
    "presence_penalty": [-2.001, 2.001, *NOT_A_NUMBER],
    "frequency_penalty": [-2.001, 2.001, *NOT_A_NUMBER],
    "repetition_penalty": [0, 0.0, -1.0, *NOT_A_NUMBER],
    "temperature": [-1e-9, -1, *NOT_A_NUMBER],
    "top_p": [0, 0.0, -0.1, 1.0001, *NOT_A_NUMBER],
    "top_k": [-2, HUGE, None, *NOT_AN_INTEGER],
    "min_p": [-0.001, 1.001, *NOT_A_NUMBER],
    "seed": [MAX_SEED + 1, -MAX_SEED - 2, *NOT_AN_INTEGER],
    "stop": ["", [""], ["a", ""], [1], 5, {"a": 1}, ["x"] * (MAX_STOP_STRINGS + 1)],
    "stop_token_ids": NOT_TOKEN_IDS,
    "ignore_eos": NOT_A_BOOL,
    "max_tokens": [0, -1, HUGE, *NOT_AN_INTEGER],
    "min_tokens": [-1, 17, HUGE, None, *NOT_AN_INTEGER],
    "logprobs": [-2, HUGE, NAN, INFINITY, 1.0, "1", [1]],
    "prompt_logprobs": [-2, HUGE, NAN, INFINITY, 1.0, "1", [1]],
    "detokenize": NOT_A_BOOL,
    "skip_special_tokens": NOT_A_BOOL,
    "spaces_between_special_tokens": NOT_A_BOOL,
    "include_stop_str_in_output": NOT_A_BOOL,
    "output_kind": [3, -1, "delta", None, True, 0.5],
    "logit_bias": [5, [1], "x", {-1: 1.0}, {"x": 1.0}, {1: 101}, {1: -100.5}, {1: "1"}, {1: NAN}, {1: True}, {1: None},
                   {"9" * 5000: 1.0}, {None: 1.0}, {1.5: 1.0}, {True: 1.0}],
    "allowed_token_ids": [[], *NOT_TOKEN_IDS],
    "bad_words": ["a", [""], [1], 5, [None]],
    "truncate_prompt_tokens": [0, -2, HUGE, *NOT_AN_INTEGER],
    "extra_args": [5, "x", [1]],
    "speculative": [0, 1, "yes"],
    "structured_outputs": [{"regex": "a"}, "a", True],
    "guided_decoding": [{"regex": "a"}, "a", True],
    "thinking_token_budget": [-1, HUGE, *NOT_AN_INTEGER],
    "reasoning_markers": [{"end_token_ids": [5]}, "a", True],
    "beam": [4, True, {"width": 4}],
}  # fmt: skip


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}-{value!r:.30}") for name, values in table.items() for value in values]


def test_the_tables_cover_every_field() -> None:
    assert set(GOOD) == set(BAD) == set(SamplingParams.__struct_fields__)


@pytest.mark.parametrize(("name", "value"), cases(GOOD))
def test_what_is_taken(name: str, value: Any) -> None:
    SamplingParams(**{name: value})


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_what_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ParameterError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
    assert name in str(caught.value) and str(caught.value).endswith(".")


def test_the_error_is_ours_and_a_value_error() -> None:
    with pytest.raises(ValueError) as caught:
        SamplingParams(temperature=-1)
    assert isinstance(caught.value, InterleafError)


def test_an_unknown_field_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        SamplingParams(temprature=1)  # type: ignore[call-arg]


def test_the_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.max_tokens, params.min_tokens, params.seed, params.logprobs) == (16, 0, None, None)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
    assert params.detokenize and params.skip_special_tokens and params.spaces_between_special_tokens
    assert not params.ignore_eos and not params.include_stop_str_in_output


@pytest.mark.parametrize(
    ("given", "name", "kept"),
    [
        ({"stop": "a"}, "stop", ["a"]),
        ({"stop": ("a", "b")}, "stop", ["a", "b"]),
        ({"top_k": -1}, "top_k", 0),
        ({"seed": -1}, "seed", None),
        ({"logprobs": True}, "logprobs", 1),
        ({"prompt_logprobs": True}, "prompt_logprobs", 1),
        ({"logit_bias": {"42": 1.0}}, "logit_bias", {42: 1.0}),
    ],
)
def test_spellings_that_mean_the_same(given: dict[str, Any], name: str, kept: Any) -> None:
    assert getattr(SamplingParams(**given), name) == kept


def test_fields_that_must_fit_together() -> None:
    with pytest.raises(ParameterError, match="min_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)
    SamplingParams(min_tokens=5, max_tokens=5)
    SamplingParams(min_tokens=500, max_tokens=None)
    with pytest.raises(ParameterError, match="detokenize"):
        SamplingParams(stop="a", detokenize=False)


@pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (1e-6, True), (1e-5, False), (1.0, False)])
def test_greedy(temperature: float, greedy: bool) -> None:
    assert SamplingParams(temperature=temperature).greedy is greedy


def test_from_optional_takes_the_default_for_none() -> None:
    assert SamplingParams.from_optional(n=None, temperature=0.5, stop=None) == SamplingParams(temperature=0.5)


def test_stop_strings() -> None:
    assert SamplingParams().stop_strings == []
    assert SamplingParams(stop="a").stop_strings == ["a"]


def test_a_clone_shares_nothing() -> None:
    params = SamplingParams(stop=["a"], logit_bias={1: 1.0})
    clone = params.clone()
    assert clone == params
    clone.stop_strings.append("b")
    assert params.stop == ["a"]


def test_copies_and_the_wire_check_again() -> None:
    params = SamplingParams(logit_bias={7: 1.5}, stop="x", seed=3, output_kind=RequestOutputKind.DELTA)
    wire = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(wire, type=SamplingParams) == params
    params.temperature = NAN
    with pytest.raises(ParameterError):
        copy.deepcopy(params)
    with pytest.raises((ParameterError, msgspec.ValidationError)):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"temperature": -1.0}), type=SamplingParams)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"beam_width": 0}, "beam_width"),
        ({"beam_width": 1.5}, "beam_width"),
        ({"length_penalty": NAN}, "length_penalty"),
        ({"early_stopping": "sometimes"}, "early_stopping"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ],
)
def test_beam_search_params_are_checked_when_they_are_used(options: dict[str, Any], param: str) -> None:
    with pytest.raises(ParameterError) as raised:
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 5, **options}).sampling_params(None)
    assert raised.value.param == param


def test_more_texts_than_beams() -> None:
    with pytest.raises(ParameterError, match=r"n \(3\) must not be greater than beam_width \(2\)"):
        SamplingParams(n=3, beam=BeamSettings(2))
