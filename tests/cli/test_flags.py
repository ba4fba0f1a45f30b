"""Flags, and what becomes of them."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import pytest

from interleaf.cli import flags
from interleaf.config import EngineArgs
from interleaf.params import SamplingParams


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4 << 30), ("512M", 512 << 20), ("1.5GiB", 3 << 29), ("2kb", 2048), ("1000000", 10**6), (" 1 T", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert flags.size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "4X", "-4G", "4 4", "1e9"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        flags.size_in_bytes(text)


def engine(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    flags.add_engine_flags(parser)
    return flags.engine_options(parser.parse_args(arguments))


def test_every_engine_argument_has_a_flag() -> None:
    parser = argparse.ArgumentParser()
    flags.add_engine_flags(parser)
    destinations = {action.dest for action in parser._actions}
    # The seed's meaning differs between subcommands; remote code is never run.
    assert destinations >= {field.name for field in fields(EngineArgs)} - {"seed"}


def test_only_the_given_engine_flags_are_passed_on() -> None:
    assert engine() == {}
    assert engine("--model", "m", "--kv-cache-memory-bytes", "1G", "--no-enable-prefix-caching", "--threads", "2") == {
        "model": "m",
        "kv_cache_memory_bytes": 1 << 30,
        "enable_prefix_caching": False,
        "threads": 2,
    }


def sampling(*arguments: str, defaults: SamplingParams | None = None) -> SamplingParams:
    parser = argparse.ArgumentParser()
    flags.add_sampling_flags(parser, 100)
    return flags.sampling_params(parser.parse_args(arguments), defaults or SamplingParams(), 100)


def test_without_flags_sampling_is_greedy() -> None:
    defaults = SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.1, max_tokens=5)
    expected = SamplingParams(temperature=0, top_p=0.9, repetition_penalty=1.1, max_tokens=100)
    assert sampling(defaults=defaults) == expected


def test_flags_override_the_checkpoints_defaults() -> None:
    params = sampling("--temperature", "0.5", "--top-p", "0.8", defaults=SamplingParams(top_p=0.9, top_k=7))
    assert (params.temperature, params.top_p, params.top_k) == (0.5, 0.8, 7)


def test_every_sampling_flag_arrives() -> None:
    line = (
        "--max-tokens 9 --min-tokens 2 --temperature 0.5 --top-p 0.8 --top-k 4 --min-p 0.1 --seed 3 "
        "--presence-penalty 1 --frequency-penalty -1 --repetition-penalty 1.2 --stop a --stop b --stop-token-ids 1,2 "
        '--include-stop-str-in-output --ignore-eos --logit-bias {"5":2} --allowed-token-ids 5,6 --bad-words x '
        "--truncate-prompt-tokens 8 --no-skip-special-tokens --no-spaces-between-special-tokens --no-speculative"
    )
    assert sampling(*line.split()) == SamplingParams(
        max_tokens=9, min_tokens=2, temperature=0.5, top_p=0.8, top_k=4, min_p=0.1, seed=3, presence_penalty=1.0,
        frequency_penalty=-1.0, repetition_penalty=1.2, stop=["a", "b"], stop_token_ids=[1, 2],
        include_stop_str_in_output=True, ignore_eos=True, logit_bias={5: 2}, allowed_token_ids=[5, 6], bad_words=["x"],
        truncate_prompt_tokens=8, skip_special_tokens=False, spaces_between_special_tokens=False,
        speculative=False,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["--stop-token-ids", "1,x"], ["--logit-bias", "[1]"], ["--logit-bias", "{"]])
def test_flags_of_the_wrong_form_are_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        sampling(*arguments)
