"""vLLM's JSON, and errors that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from interleaf.errors import ConfigError
from interleaf.speculative_config import parse_speculative_config


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"method": "ngram", "num_speculative_tokens": 3}, ("ngram", 3)),
        ({"prompt_lookup_max": 4}, ("ngram", 8)),
        ({"model": "[ngram]", "num_speculative_tokens": 2, "prompt_lookup_max": 3}, ("ngram", 2)),
        ({"method": "suffix"}, ("suffix", 24)),
        ({"method": "suffix", "suffix_decoding_max_tree_depth": 9}, ("suffix", 9)),
        ({"suffix_decoding_min_token_prob": 0.5, "num_speculative_tokens": 7}, ("suffix", 7)),
        ({"model": "some/draft", "num_speculative_tokens": 5}, ("draft_model", 5)),
        ({"method": "draft_model", "model": "d", "draft_tensor_parallel_size": 1}, ("draft_model", 4)),
    ],
)
def test_the_method_is_inferred(given: dict[str, Any], expected: tuple[str, int]) -> None:
    for form in (given, json.dumps(given), {**given, "disable_by_batch_size": None}):
        config = parse_speculative_config(form)
        assert config is not None
        assert (config.method, config.num_speculative_tokens) == expected


def test_one_lookup_length_is_both() -> None:
    for given, expected in [({"prompt_lookup_max": 4}, (4, 4)), ({"prompt_lookup_min": 3}, (3, 3)), ({}, (2, 5))]:
        config = parse_speculative_config({"method": "ngram", **given})
        assert config is not None and (config.prompt_lookup_min, config.prompt_lookup_max) == expected


def test_vllm_calls_rejection_sampling_probabilistic_too() -> None:
    config = parse_speculative_config({"model": "d", "rejection_sample_method": "probabilistic"})
    assert config is not None and config.rejection_sample_method == "standard"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("{", "speculative_config"),
        ("[1]", "speculative_config"),
        (5, "speculative_config"),
        ({}, "method"),
        ({"method": "eagle", "model": "m"}, "method"),
        ({"method": "draft_model"}, "model"),
        ({"model": 7}, "model"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "num_speculative_tokens"),
        ({"method": "ngram", "num_speculative_tokens": 65}, "num_speculative_tokens"),
        ({"method": "ngram", "num_speculative_tokens": True}, "num_speculative_tokens"),
        ({"method": "ngram", "prompt_lookup_min": 4, "prompt_lookup_max": 3}, "prompt_lookup_min"),
        ({"method": "ngram", "prompt_lookup_max": 0}, "prompt_lookup_m"),
        ({"method": "ngram", "suffix_decoding_min_token_prob": 0.5}, "suffix_decoding_min_token_prob"),
        ({"method": "ngram", "numspeculative": 4}, "numspeculative"),
        ({"method": "suffix", "suffix_decoding_min_token_prob": 1.5}, "suffix_decoding_min_token_prob"),
        ({"method": "suffix", "suffix_decoding_max_spec_factor": "x"}, "suffix_decoding_max_spec_factor"),
        ({"model": "d", "draft_tensor_parallel_size": 2}, "draft_tensor_parallel_size"),
        ({"model": "d", "rejection_sample_method": "loose"}, "rejection_sample_method"),
        ({"model": "d", "draft_sample_method": "x"}, "draft_sample_method"),
        ({"model": "d", "quantization": 4}, "quantization"),
        ({"model": "d", "disable_by_batch_size": -1}, "disable_by_batch_size"),
    ],
)
def test_errors_name_the_field(given: Any, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_speculative_config(given)
