"""`SpeculativeConfig`: vLLM's `--speculative-config` JSON, checked. See docs/speculative_decoding.md."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from interleaf.errors import ConfigError

Method = Literal["ngram", "suffix", "draft_model"]
AcceptBy = Literal["strict", "standard"]
DraftSampling = Literal["greedy", "probabilistic"]

MAX_SPECULATIVE_TOKENS = 64
DEFAULT_TOKENS: dict[str, int] = {"ngram": 8, "draft_model": 4}
"""Method -> drafts a step at most; for suffix the depth of its tree."""
DEFAULT_BATCH_SIZE = 16
DEFAULT_TREE_DEPTH = 24

OWN_FIELDS = {
    "prompt_lookup_max": "ngram",
    "prompt_lookup_min": "ngram",
    "suffix_decoding_max_tree_depth": "suffix",
    "suffix_decoding_max_cached_requests": "suffix",
    "suffix_decoding_max_spec_factor": "suffix",
    "suffix_decoding_min_token_prob": "suffix",
    "model": "draft_model",
    "revision": "draft_model",
    "quantization": "draft_model",
    "max_model_len": "draft_model",
    "draft_sample_method": "draft_model",
    "rejection_sample_method": "draft_model",
}
"""Field -> the method that it belongs to."""
MUST_BE_ONE = ("draft_tensor_parallel_size", "tensor_parallel_size")
COMMON_FIELDS = ("method", "num_speculative_tokens", "disable_by_batch_size", *MUST_BE_ONE)
METHODS_AS_MODELS = {"ngram": "ngram", "[ngram]": "ngram", "suffix": "suffix"}
"""What may stand in `model` for a method without one."""


@dataclass(frozen=True, slots=True)
class SpeculativeConfig:
    """How drafts are made and tried, under vLLM's names.

    Fields:
        method: "ngram" goes on as the text did behind the same tokens before; "suffix" does so by frequency, over
            earlier outputs too; "draft_model" asks a smaller model.
        num_speculative_tokens: most drafts of a sequence in a step.
        disable_by_batch_size: with more sequences in a step there are no drafts.
        prompt_lookup_min, prompt_lookup_max: ngram: tokens that must be, and at most are, the same.
        suffix_decoding_max_tree_depth: suffix: most tokens that are compared.
        suffix_decoding_max_cached_requests: finished outputs that are kept; 0 is none.
        suffix_decoding_max_spec_factor: most drafts for each token that was the same.
        suffix_decoding_min_token_prob: the least estimated probability of a draft and all before it.
        model, revision: draft_model: as for the model itself; it must have the same vocabulary.
        quantization: of the draft model's weights; None is as the model's.
        max_model_len: of the draft model; there are no drafts for longer contexts.
        draft_sample_method: "probabilistic" lets the draft model sample with the noise and the filters of the model
            itself, which is accepted most often; "greedy" takes its likeliest token.
        rejection_sample_method: "strict" accepts a draft that is the very token that the model samples; "standard" is
            rejection sampling (Leviathan et al. 2023), whose text has the same distribution but not the same bits.
    """

    method: Method
    num_speculative_tokens: int
    disable_by_batch_size: int = DEFAULT_BATCH_SIZE
    prompt_lookup_min: int = 2
    prompt_lookup_max: int = 5
    suffix_decoding_max_tree_depth: int = DEFAULT_TREE_DEPTH
    suffix_decoding_max_cached_requests: int = 10000
    suffix_decoding_max_spec_factor: float = 1.0
    suffix_decoding_min_token_prob: float = 0.1
    model: str | None = None
    revision: str | None = None
    quantization: str | None = None
    max_model_len: int | None = None
    draft_sample_method: DraftSampling = "probabilistic"
    rejection_sample_method: AcceptBy = "strict"


def parse_speculative_config(given: Mapping[str, Any] | str | None) -> SpeculativeConfig | None:
    """The configuration that a user's JSON (or mapping) asks for; None for none.

    Raises:
        ConfigError: it is no JSON object, or a field cannot be used, which is named.
    """
    if given is None:
        return None
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ConfigError(f"speculative_config is no JSON: {error}.") from None
    if not isinstance(given, Mapping):
        raise ConfigError(f"speculative_config must be a JSON object, not {given!r:.100}.")
    values = {name: value for name, value in given.items() if value is not None}
    method = _method(values)
    for name in values:
        if name not in COMMON_FIELDS and OWN_FIELDS.get(name) != method:
            owner = f"belongs to the method {OWN_FIELDS[name]}" if name in OWN_FIELDS else "is not known"
            raise ConfigError(f"speculative_config: {name} {owner}, and the method is {method}: leave it out.")
    for name in MUST_BE_ONE:
        if values.pop(name, 1) != 1:
            raise ConfigError(f"speculative_config: {name} must be 1: the draft model runs where the model does.")
    values["method"] = method
    return _checked(values)


def _method(values: dict[str, Any]) -> Method:
    """The method that is named, or that the other fields belong to."""
    model = values.get("model")
    if isinstance(model, str) and model in METHODS_AS_MODELS:
        del values["model"]
        values.setdefault("method", METHODS_AS_MODELS[model])
    named: Any = values.get("method")
    if named is None:
        owners = {OWN_FIELDS[name] for name in values if name in OWN_FIELDS}
        named = "draft_model" if "model" in values else next(iter(owners), None) if len(owners) == 1 else None
        if named is None:
            raise ConfigError(f"speculative_config: method must be one of {', '.join(get_args(Method))}.")
    if named not in get_args(Method):
        raise ConfigError(
            f"speculative_config: method {named!r:.60} is not available: choose one of {', '.join(get_args(Method))}."
        )
    if named == "draft_model" and not isinstance(model, str):
        raise ConfigError("speculative_config: model must name the draft model, as --model names the model.")
    method: Method = named
    return method


def _checked(values: dict[str, Any]) -> SpeculativeConfig:
    method = values["method"]
    if method == "ngram" and ("prompt_lookup_min" in values) != ("prompt_lookup_max" in values):
        # As vLLM: where one is given it is also the other.
        values["prompt_lookup_min"] = values["prompt_lookup_max"] = values.get(
            "prompt_lookup_min", values.get("prompt_lookup_max")
        )
    depth = values.get("suffix_decoding_max_tree_depth", DEFAULT_TREE_DEPTH)
    values.setdefault("num_speculative_tokens", DEFAULT_TOKENS.get(method, depth))
    _integer(values, "num_speculative_tokens", 1, MAX_SPECULATIVE_TOKENS)
    _integer(values, "disable_by_batch_size", 0, 2**31 - 1)
    _integer(values, "prompt_lookup_min", 1, 64)
    _integer(values, "prompt_lookup_max", 1, 64)
    _integer(values, "suffix_decoding_max_tree_depth", 2, MAX_SPECULATIVE_TOKENS)
    _integer(values, "suffix_decoding_max_cached_requests", 0, 2**31 - 1)
    _integer(values, "max_model_len", 1, 2**31 - 1)
    _number(values, "suffix_decoding_max_spec_factor", 0.0, 1000.0)
    _number(values, "suffix_decoding_min_token_prob", 0.0, 1.0)
    if values.get("rejection_sample_method") == "probabilistic":
        values["rejection_sample_method"] = "standard"
    _choice(values, "rejection_sample_method", get_args(AcceptBy))
    _choice(values, "draft_sample_method", get_args(DraftSampling))
    for name in ("revision", "quantization"):
        if not isinstance(values.get(name, ""), str):
            raise ConfigError(f"speculative_config: {name} must be a string, not {values[name]!r:.60}.")
    config = SpeculativeConfig(**values)
    if config.prompt_lookup_min > config.prompt_lookup_max:
        raise ConfigError(
            f"speculative_config: prompt_lookup_min ({config.prompt_lookup_min}) must not be greater than "
            f"prompt_lookup_max ({config.prompt_lookup_max})."
        )
    return config


def _integer(values: Mapping[str, Any], name: str, low: int, high: int) -> None:
    value = values.get(name, low)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"speculative_config: {name} must be an integer from {low} to {high}, not {value!r:.60}.")


def _number(values: Mapping[str, Any], name: str, low: float, high: float) -> None:
    value = values.get(name, low)
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= value <= high:
        raise ConfigError(f"speculative_config: {name} must be a number from {low:g} to {high:g}, not {value!r:.60}.")


def _choice(values: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> None:
    value = values.get(name, choices[0])
    if value not in choices:
        raise ConfigError(f"speculative_config: {name} must be one of {', '.join(choices)}, not {value!r:.60}.")
