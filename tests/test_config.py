"""resolve(): bad flags, bad checkpoints, too little memory, and what is chosen for the user."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from interleaf.cache_layout import group_layers
from interleaf.config import EngineArgs, EngineConfig, engine_args, kv_bytes_per_token, resolve
from interleaf.errors import (
    ConfigError,
    CorruptCheckpointError,
    InsufficientMemoryError,
    InterleafError,
    UnsupportedModelError,
)
from interleaf.machine import usable_cores
from interleaf.model_config import parse_model_config

MIB = 1 << 20
HF: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "tie_word_embeddings": True,
}
BYTES_PER_TOKEN = 2 * 2 * 2 * 16 * 2
"""Keys and values, two layers, two heads of 16, two bytes."""


def make(
    hf: dict[str, Any] | None = None, weights: int = 10 * MIB, free: int = 1000 * MIB, **args: Any
) -> EngineConfig:
    return resolve(EngineArgs(**args), "m", HF if hf is None else hf, weights, free)


# ---- flags ----


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, bad) for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "threads")
          for bad in (0, -1, 1.5, "8", True)],
        *[("max_num_seqs", None), ("max_num_batched_tokens", None)],
        *[("block_size", bad) for bad in (0, -16, 8, 17, 16.0, "16", None, True)],
        *[("kv_cache_memory_bytes", bad) for bad in (-1, 1.5, "4G", True)],
        *[("scheduling_policy", bad) for bad in ("lifo", None, 1)],
        *[("max_logprobs", bad) for bad in (-2, None, "5", 1.5)],
        *[("long_prefill_token_threshold", bad) for bad in (-1, None, "5", 1.5)],
        *[("dtype", bad) for bad in ("int3", None, 16)],
        *[("seed", bad) for bad in ("x", 1.5)],
        *[("max_model_len", 1025)],
    ],
)  # fmt: skip
def test_a_bad_flag_is_named_in_one_sentence(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        make(**{name: value})
    assert str(caught.value).endswith(".") and isinstance(caught.value, ValueError)


def test_unknown_options_are_refused() -> None:
    assert engine_args({"model": "m", "seed": 3}) == EngineArgs(model="m", seed=3)
    with pytest.raises(ConfigError, match="max_modell_len"):
        engine_args({"model": "m", "max_modell_len": 3})


def test_without_chunked_prefill_a_step_must_hold_a_whole_prompt() -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens"):
        make(enable_chunked_prefill=False, max_num_batched_tokens=1023)
    config = make(enable_chunked_prefill=False, max_num_batched_tokens=1024)
    assert not config.scheduler.enable_chunked_prefill


def test_flags_arrive() -> None:
    config = make(
        max_model_len=512, max_num_seqs=3, max_num_batched_tokens=77, block_size=32, enable_prefix_caching=False,
        long_prefill_token_threshold=5, scheduling_policy="priority", max_logprobs=-1, seed=9, threads=2,
        dtype="float32",
    )  # fmt: skip
    assert (config.scheduler.max_model_len, config.scheduler.max_num_seqs) == (512, 3)
    assert (config.scheduler.max_num_batched_tokens, config.scheduler.long_prefill_token_threshold) == (77, 5)
    assert (config.scheduler.policy, config.cache.block_size, config.cache.enable_prefix_caching) == (
        "priority", 32, False
    )  # fmt: skip
    assert (config.max_logprobs, config.seed, config.threads, config.dtype) == (-1, 9, 2, "float32")
    assert config.model_name == "m"


@pytest.mark.parametrize(("given", "chosen"), [("auto", "bfloat16"), ("bfloat16", "bfloat16"), ("float", "float32")])
def test_dtypes(given: str, chosen: str) -> None:
    assert make(dtype=given).dtype == chosen


def test_defaults_use_every_core_and_seed_0() -> None:
    config = make()
    assert (config.threads, config.seed) == (usable_cores(), 0)
    assert make(seed=None).seed != make(seed=None).seed


def test_a_config_is_frozen() -> None:
    config = make()
    for part in (config, config.model, config.cache, config.scheduler):
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            setattr(part, fields(part)[0].name, None)


# ---- memory ----


def test_the_cache_takes_half_of_what_is_free_at_most() -> None:
    config = make(weights=10 * MIB, free=12 * MIB)
    assert config.cache.num_blocks == MIB // (16 * BYTES_PER_TOKEN)


def test_the_cache_takes_no_more_than_could_be_used() -> None:
    config = make(max_num_seqs=2, max_model_len=100)
    assert config.cache.num_blocks == 2 * 7
    assert config.cache.num_slots == 2 * 7 * 16


def test_the_given_cache_size_holds() -> None:
    assert make(kv_cache_memory_bytes=MIB).cache.num_blocks == MIB // (16 * BYTES_PER_TOKEN)
    with pytest.raises(InsufficientMemoryError, match="kv_cache_memory_bytes"):
        make(kv_cache_memory_bytes=991 * MIB)


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(InsufficientMemoryError, match="weights") as caught:
        make(weights=10 * MIB, free=10 * MIB)
    assert isinstance(caught.value, MemoryError) and isinstance(caught.value, InterleafError)


def test_a_cache_without_room_for_one_block() -> None:
    with pytest.raises(InsufficientMemoryError, match="one block"):
        make(kv_cache_memory_bytes=16 * BYTES_PER_TOKEN - 1)
    with pytest.raises(InsufficientMemoryError, match="one block"):
        make(weights=10 * MIB, free=10 * MIB + 100)


def test_little_memory_shortens_the_context() -> None:
    config = make(kv_cache_memory_bytes=5 * 16 * BYTES_PER_TOKEN)
    assert config.cache.num_blocks == 5 and config.scheduler.max_model_len == 80


def test_little_memory_does_not_shorten_a_context_that_was_asked_for() -> None:
    with pytest.raises(InsufficientMemoryError, match="max_model_len"):
        make(kv_cache_memory_bytes=5 * 16 * BYTES_PER_TOKEN, max_model_len=81)
    assert make(kv_cache_memory_bytes=5 * 16 * BYTES_PER_TOKEN, max_model_len=80).scheduler.max_model_len == 80


def test_bytes_of_a_token() -> None:
    model = make().model
    assert kv_bytes_per_token(model, "bfloat16") == BYTES_PER_TOKEN
    assert kv_bytes_per_token(model, "float32") == 2 * BYTES_PER_TOKEN
    assert kv_bytes_per_token(replace(model, head_dim=18), "bfloat16") == 2 * BYTES_PER_TOKEN
    values = BYTES_PER_TOKEN // 2
    assert kv_bytes_per_token(model, "int8") == values + values // model.head_dim * 4


def test_int8_keys_and_values_are_more_tokens_in_the_same_memory() -> None:
    plain, small = (make(kv_cache_memory_bytes=1 << 20, kv_cache_dtype=name) for name in ("auto", "int8"))
    assert (plain.cache.dtype, small.cache.dtype) == ("bfloat16", "int8")
    assert small.cache.num_blocks > 1.5 * plain.cache.num_blocks
    assert make(kv_cache_memory_bytes=1 << 20, kv_cache_dtype="int8_per_token_head") == small
    assert make(dtype="float32").cache.dtype == "float32"


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("fp8", "auto", "choose int8"),
        ("fp8_e4m3", "auto", "choose int8"),
        ("int3", "auto", "must be one of"),
        (8, "auto", "must be one of"),
        ("bfloat16", "float32", "needs the same --dtype"),
    ],
)
def test_a_kv_cache_dtype_that_cannot_be_had(name: Any, dtype: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(kv_cache_dtype=name, dtype=dtype)


# ---- checkpoints ----


def test_facts_of_the_model() -> None:
    model = parse_model_config(HF)
    assert (model.architecture, model.num_heads, model.num_kv_heads, model.head_dim) == ("LlamaForCausalLM", 4, 2, 16)
    assert (model.norm_eps, model.tie_word_embeddings, model.rope.theta) == (1e-5, True, 5e5)
    assert parse_model_config({**HF, "num_key_value_heads": None}).num_kv_heads == 4
    assert parse_model_config({**HF, "head_dim": 32}).head_dim == 32


def test_both_spellings_of_the_rotary_scaling() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0}
    old = parse_model_config({**HF, "rope_scaling": scaling}).rope
    new = parse_model_config({**HF, "rope_theta": None, "rope_parameters": {**scaling, "rope_theta": 5e5}}).rope
    assert (old.kind, old.theta, old.scaling["factor"]) == (new.kind, new.theta, new.scaling["factor"])
    assert parse_model_config({**HF, "rope_scaling": {"type": "linear", "factor": 2.0}}).rope.kind == "linear"


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [
        ({"rope_type": "linear", "factor": 2.0}, 2048),
        ({"rope_type": "dynamic", "factor": 4.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256}, 1024),
    ],
)
def test_the_longest_context(scaling: dict[str, Any], longest: int) -> None:
    assert make({**HF, "rope_scaling": scaling}).scheduler.max_model_len == longest


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"architectures": None}, UnsupportedModelError),
        ({"architectures": []}, UnsupportedModelError),
        ({"architectures": "Llama"}, UnsupportedModelError),
        ({"architectures": [5]}, UnsupportedModelError),
        ({"rope_scaling": {"rope_type": "spiral"}}, UnsupportedModelError),
        ({"num_key_value_heads": 3}, CorruptCheckpointError),
        ({"head_dim": 15}, CorruptCheckpointError),
        *[({name: bad}, CorruptCheckpointError)
          for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
          for bad in (None, 0, -1, "64", 1.5, True, 2**31)],
        ({"max_position_embeddings": "long"}, CorruptCheckpointError),
        ({"rms_norm_eps": "small"}, CorruptCheckpointError),
        ({"rms_norm_eps": float("nan")}, CorruptCheckpointError),
        ({"rope_theta": "big"}, CorruptCheckpointError),
        ({"rope_theta": [1]}, CorruptCheckpointError),
        ({"rope_theta": float("inf")}, CorruptCheckpointError),
        ({"partial_rotary_factor": -1.0}, CorruptCheckpointError),
        ({"partial_rotary_factor": 3.0}, CorruptCheckpointError),
        ({"rope_scaling": "yarn"}, CorruptCheckpointError),
        ({"rope_scaling": {"rope_type": "linear", "factor": "x"}}, CorruptCheckpointError),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}, CorruptCheckpointError),
    ],
)  # fmt: skip
def test_a_checkpoint_that_makes_no_sense(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        make({**HF, **changes})
    assert str(caught.value).endswith(".")


# ---- windows ----

GEMMA3: dict[str, Any] = HF | {
    "architectures": ["Gemma3ForCausalLM"],
    "num_hidden_layers": 18,
    "sliding_window": 512,
    "max_position_embeddings": 32768,
    "head_dim": 16,
}


def test_layers_with_a_window_leave_room_for_longer_contexts() -> None:
    budget = {"kv_cache_memory_bytes": 2 * 18 * 2 * 16 * 2 * 16 * 1024, "max_num_batched_tokens": 512}
    config = make(GEMMA3, **budget)
    layout = config.cache.layout
    assert layout.windows == (0, 512, 512, 512, 512, 512) and layout.layers_per_page == 3
    assert config.cache.num_blocks == 6 * 1024
    plain = make(GEMMA3 | {"sliding_window": None}, **budget)
    assert plain.cache.layout.is_plain and plain.cache.num_slots == plain.scheduler.max_model_len == 1024 * 16
    assert config.scheduler.max_model_len == 32768 and config.cache.num_slots > 5 * plain.cache.num_slots
    assert (
        layout.peak_pages(config.cache.num_slots, 16) <= 6 * 1024 < layout.peak_pages(config.cache.num_slots + 16, 16)
    )


def test_a_window_that_no_context_outgrows_is_none() -> None:
    assert make(GEMMA3, max_model_len=512).cache.layout.is_plain
    assert not make(GEMMA3, max_model_len=513).cache.layout.is_plain


@pytest.mark.parametrize(
    ("windows", "groups", "layers_per_page"),
    [
        ([0] * 5, (0,), 5),
        ([8] * 5, (8,), 5),
        ([0, 8] * 13, (0, 8), 13),
        (([8] * 5 + [0]) * 4 + [8, 8], (0,) * 2 + (8,) * 11, 2),
        (([8] * 5 + [0]) * 5 + [8] * 4, (0,) + (8,) * 6, 5),
        ([4, 8, 0], (0, 4, 8), 1),
    ],
)
def test_groups_of_layers(windows: list[int], groups: tuple[int, ...], layers_per_page: int) -> None:
    layout = group_layers(windows, 64)
    assert (layout.windows, layout.layers_per_page) == (groups, layers_per_page)
    assert len(set(layout.places)) == len(windows)
    assert [layout.windows[group] for group, _ in layout.places] == windows


def test_which_layers_have_windows() -> None:
    def windows(architecture: str, **facts: Any) -> tuple[int, ...]:
        layers = {"architectures": [architecture], "num_hidden_layers": 4, "sliding_window": 9}
        return parse_model_config(HF | layers | facts).windows

    assert windows("LlamaForCausalLM") == (0, 0, 0, 0)
    assert windows("MistralForCausalLM") == (9, 9, 9, 9)
    assert windows("MistralForCausalLM", sliding_window=None) == (0, 0, 0, 0)
    assert windows("Qwen2ForCausalLM") == (0, 0, 0, 0)
    assert windows("Qwen3ForCausalLM", use_sliding_window=True, max_window_layers=3) == (0, 0, 0, 9)
    assert windows("Gemma2ForCausalLM") == (9, 0, 9, 0)
    assert windows("Gemma3ForCausalLM", sliding_window_pattern=3) == (9, 9, 0, 9)
    kinds = ["full_attention", "sliding_attention"] * 2
    assert windows("Gemma3ForCausalLM", layer_types=kinds) == (0, 9, 0, 9)
