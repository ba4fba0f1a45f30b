"""Configuration: flags (`EngineArgs`) and checkpoint facts become one frozen `EngineConfig`.

`resolve()` is the only place where defaults are chosen. Nothing is written to a config afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from interleaf import families
from interleaf.cache_layout import PLAIN, CacheLayout, group_layers
from interleaf.errors import ConfigError, InsufficientMemoryError
from interleaf.machine import usable_cores
from interleaf.model_config import ModelConfig, parse_model_config
from interleaf.speculative_config import SpeculativeConfig, parse_speculative_config
from interleaf.vllm_options import without_vllm_options

BUILTIN_MODEL = "smollm2-135m-instruct"
"""The model used when none is named; see `interleaf.loader.builtin`."""

DTYPES = {"auto": "bfloat16", "bfloat16": "bfloat16", "float32": "float32", "float": "float32"}
KV_CACHE_DTYPES = {"auto": None, "bfloat16": "bfloat16", "int8": "int8", "int8_per_token_head": "int8"}
"""Values of `kv_cache_dtype` -> how keys and values are kept; None is as the arithmetic."""
QUANTIZATIONS = ("int8", "int4", "gguf")
QUANTIZED_SHARE = {"int8": 0.54, "int4": 0.33}
"""Memory of weights quantized at load, scales included, by that of bfloat16."""

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
BLOCK_MULTIPLE = 16
"""Block sizes are multiples of this: one 512-bit register holds the scores of 16 keys."""

LEAST_VALUES = {
    "max_model_len": 1,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "block_size": BLOCK_MULTIPLE,
    "kv_cache_memory_bytes": 1,
    "long_prefill_token_threshold": 0,
    "max_logprobs": -1,
    "seed": None,
    "threads": 1,
}
"""Fields of `EngineArgs` that are integers -> the least value each may have."""
MAY_BE_NONE = {"max_model_len", "kv_cache_memory_bytes", "seed", "threads"}

DEFAULT_MEMORY_SHARE = 0.5
"""Share of the memory that is free once the weights are loaded that the KV cache may take."""


@dataclass(frozen=True, slots=True)
class EngineArgs:
    """What a user may set, under vLLM's names; None is "choose for me".

    Fields:
        model: a directory in Hugging Face layout, a .gguf file, a hub name, or a built-in name.
        tokenizer: the same choices; None takes the model's own.
        dtype: "auto" (bfloat16), "bfloat16" or "float32": of the arithmetic.
        kv_cache_dtype: "auto" keeps keys and values in `dtype`; "int8" (or "int8_per_token_head") in 8 bits with one
            scale a token and head.
        quantization: of the linear weights: None computes on the weights in `dtype` (a quantized GGUF file is
            dequantized), "int8" and "int4" quantize when loading, "gguf" runs a GGUF file in its own precision.
        max_model_len: longest context in tokens, prompt and output together.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens computed in one step.
        block_size: tokens in a KV block, a multiple of 16.
        kv_cache_memory_bytes: size of the KV cache; None is half of the free memory at most.
        enable_prefix_caching: reuse the KV blocks of equal prefixes.
        enable_chunked_prefill: cut a long prompt into steps; False computes each prompt in one.
        long_prefill_token_threshold: most tokens of one prompt in a step; 0 is no such limit.
        scheduling_policy: "fcfs" or "priority" (lower number first, then arrival).
        max_logprobs: most logprobs a request may ask for; -1 is the whole vocabulary.
        seed: of the noise of requests that bring no seed.
        threads: of the native library; None is every core the process may use.
        speculative_config: how to speculate, as `interleaf.speculative_config.SpeculativeConfig` in JSON.
        logits_processors: custom logits processors: classes, or "module:Class" of what can be imported.
        generation_config: whose sampling defaults apply: "auto" the checkpoint's, "vllm" none, or those of a
            directory with a generation_config.json.
        override_generation_config: what goes before them, under the names in generation_config.json.
    """

    model: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    scheduling_policy: str = "fcfs"
    max_logprobs: int = 20
    seed: int | None = 0
    threads: int | None = None
    revision: str | None = None
    chat_template: str | None = None
    logits_processors: Sequence[Any] = ()
    speculative_config: dict[str, Any] | str | None = None
    generation_config: str = "auto"
    override_generation_config: dict[str, Any] | str | None = None


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Shape of the paged KV cache. `num_blocks` does not count anything reserved: all are usable.

    `dtype`: "bfloat16", "float32", or "int8" with one scale a token and head.

    Where layers are in several groups, a block is a page of one group.
    """

    block_size: int
    num_blocks: int
    enable_prefix_caching: bool
    layout: CacheLayout = PLAIN
    dtype: str = "bfloat16"

    @property
    def num_stored_blocks(self) -> int:
        """The pool's blocks, and behind them the null block where there are windows: it holds zeros."""
        return self.num_blocks + (not self.layout.is_plain)

    @property
    def num_slots(self) -> int:
        """Tokens that fit, if they are all of one sequence."""
        if self.layout.is_plain:
            return self.block_size * self.num_blocks
        return self.layout.capacity(self.num_blocks, self.block_size)


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits and policy of the scheduler."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    policy: Literal["fcfs", "priority"] = "fcfs"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything the engine knows when it starts."""

    model_name: str
    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    dtype: Literal["bfloat16", "float32"]
    threads: int
    seed: int
    max_logprobs: int
    quantization: str | None = None
    speculative: SpeculativeConfig | None = None
    draft_model: ModelConfig | None = None


def resolve(
    args: EngineArgs,
    model_name: str,
    hf_config: Mapping[str, Any],
    weight_bytes: int,
    free_memory_bytes: int,
    draft_hf_config: Mapping[str, Any] | None = None,
) -> EngineConfig:
    """Turn flags and checkpoint facts into the engine's configuration.

    Args:
        hf_config: the checkpoint's config.json.
        weight_bytes: memory that the weights will take, a draft model's included.
        free_memory_bytes: memory that the process may still take, before the weights are loaded.
        draft_hf_config: a draft model's config.json.

    Raises:
        ConfigError: a flag has a value that cannot work.
        InsufficientMemoryError: the weights, or a useful KV cache, do not fit.
    """
    dtype = resolve_dtype(args.dtype)
    _check_limits(args)
    model = parse_model_config(hf_config)
    speculative = parse_speculative_config(args.speculative_config)
    if speculative is not None:
        speculative = replace(speculative, quantization=draft_quantization(args))
    draft_model = None if draft_hf_config is None else _draft_model(draft_hf_config, model)
    max_model_len = _max_model_len(args, model)
    cache_dtype = resolve_cache_dtype(args.kv_cache_dtype, dtype)
    cache = _cache_config(args, model, draft_model, max_model_len, cache_dtype, free_memory_bytes - weight_bytes)
    return EngineConfig(
        model_name=model_name,
        model=model,
        cache=cache,
        scheduler=_scheduler_config(args, _fit_context(args, max_model_len, cache.num_slots)),
        dtype=dtype,
        quantization=args.quantization,
        threads=args.threads or usable_cores(),
        seed=args.seed if args.seed is not None else int.from_bytes(os.urandom(7), "little"),
        max_logprobs=args.max_logprobs,
        speculative=speculative,
        draft_model=draft_model,
    )


def _draft_model(hf_config: Mapping[str, Any], model: ModelConfig) -> ModelConfig:
    draft = parse_model_config(hf_config)
    if draft.vocab_size != model.vocab_size:
        raise ConfigError(
            f"speculative_config: model has a vocabulary of {draft.vocab_size} tokens, and the model itself one of "
            f"{model.vocab_size}: a draft model must have the same."
        )
    return draft


def kv_bytes_per_token(model: ModelConfig, cache_dtype: str) -> int:
    """Bytes that one token takes in the KV cache, all layers together.

    The kernels keep heads padded to 16 values; int8 has a float32 scale for each.
    """
    padded_head = -(-model.head_dim // 16) * 16
    head_bytes = padded_head + 4 if cache_dtype == "int8" else padded_head * DTYPE_BYTES[cache_dtype]
    return 2 * model.num_layers * model.num_kv_heads * head_bytes


def block_bytes(
    model: ModelConfig, draft_model: ModelConfig | None, cache_dtype: str, layout: CacheLayout, block_size: int
) -> int:
    """Bytes of one block of the pool: of all layers, or of those that share a page; a draft model's beside them."""
    token_bytes = kv_bytes_per_token(model, cache_dtype) // model.num_layers * layout.layers_per_page
    if draft_model is not None:
        token_bytes += kv_bytes_per_token(draft_model, cache_dtype)
    return token_bytes * block_size


def weight_memory(dtype: str, quantization: str | None, stored_bytes: Callable[..., int]) -> int:
    """Bytes that the weights will take; `stored_bytes(dtype, dequantize)` is `Checkpoint.weight_bytes`."""
    if quantization in QUANTIZED_SHARE:
        return int(stored_bytes("bfloat16", dequantize=True) * QUANTIZED_SHARE[quantization])
    return stored_bytes(resolve_dtype(dtype), dequantize=quantization != "gguf")


def draft_quantization(args: EngineArgs) -> str | None:
    """Of a draft model's weights: as the model's, unless its own is named.

    Raises:
        ConfigError: it cannot be had.
    """
    speculative = parse_speculative_config(args.speculative_config)
    named = None if speculative is None else speculative.quantization
    if named is not None and named not in QUANTIZATIONS:
        raise ConfigError(f"speculative_config: quantization must be {', '.join(QUANTIZATIONS)}, not {named!r:.60}.")
    return named or args.quantization


def resolve_dtype(name: str) -> Literal["bfloat16", "float32"]:
    """The arithmetic that a dtype flag asks for.

    Raises:
        ConfigError: it cannot be had here.
    """
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} cannot be used here: choose auto, bfloat16 or float32 with --dtype.")
    return "float32" if DTYPES[name] == "float32" else "bfloat16"


def resolve_cache_dtype(name: str, dtype: str) -> str:
    """How keys and values are kept, when the arithmetic is `dtype`.

    Raises:
        ConfigError: they cannot be kept so.
    """
    if str(name).startswith("fp8"):
        raise ConfigError(f"kv_cache_dtype {name!r} is not supported: choose int8 with --kv-cache-dtype for 8 bits.")
    if name not in KV_CACHE_DTYPES:
        raise ConfigError(f"kv_cache_dtype must be one of {', '.join(KV_CACHE_DTYPES)}, not {name!r}.")
    if KV_CACHE_DTYPES[name] not in (None, "int8", dtype):
        raise ConfigError(
            f"kv_cache_dtype {name!r} needs the same --dtype: choose auto or int8, or set --dtype {name}."
        )
    return KV_CACHE_DTYPES[name] or dtype


def _check_limits(args: EngineArgs) -> None:
    for name, least in LEAST_VALUES.items():
        value = getattr(args, name)
        if value is None and name in MAY_BE_NONE:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
            bound = "" if least is None else f" of at least {least}"
            raise ConfigError(f"{name} must be an integer{bound}, not {value!r}.")
    if args.block_size % BLOCK_MULTIPLE:
        raise ConfigError(f"block_size must be a multiple of {BLOCK_MULTIPLE}, not {args.block_size!r}.")
    if args.quantization is not None and args.quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization must be {', '.join(QUANTIZATIONS)} or none, not {args.quantization!r}.")
    if args.scheduling_policy not in ("fcfs", "priority"):
        raise ConfigError(f"scheduling_policy must be fcfs or priority, not {args.scheduling_policy!r}.")


def _max_model_len(args: EngineArgs, model: ModelConfig) -> int:
    longest = model.max_position_embeddings
    scaling = model.rope.scaling
    if model.rope.kind in ("linear", "dynamic") and model.architecture not in families.SCALED_LENGTHS:
        longest = max(longest, int(longest * float(scaling.get("factor", 1.0))))
    elif model.rope.kind == "yarn" and "original_max_position_embeddings" in scaling:
        original = int(scaling["original_max_position_embeddings"])
        longest = max(longest, int(original * float(scaling.get("factor", 1.0))))
    if args.max_model_len is None:
        return longest
    if args.max_model_len > longest:
        raise ConfigError(
            f"max_model_len ({args.max_model_len}) is more than the {longest} positions the model was made for: "
            f"lower --max-model-len."
        )
    return args.max_model_len


def _cache_config(
    args: EngineArgs,
    model: ModelConfig,
    draft_model: ModelConfig | None,
    max_model_len: int,
    cache_dtype: str,
    free_bytes: int,
) -> CacheConfig:
    layout = _cache_layout(args, model, draft_model, max_model_len)
    page_bytes = block_bytes(model, draft_model, cache_dtype, layout, args.block_size)
    most_pages = args.max_num_seqs * layout.peak_pages(max_model_len, args.block_size)
    num_blocks = _num_blocks(args, page_bytes, most_pages, free_bytes)
    return CacheConfig(args.block_size, num_blocks, args.enable_prefix_caching, layout, cache_dtype)


def _scheduler_config(args: EngineArgs, max_model_len: int) -> SchedulerConfig:
    if not args.enable_chunked_prefill and args.max_num_batched_tokens < max_model_len:
        raise ConfigError(
            f"max_num_batched_tokens ({args.max_num_batched_tokens}) must be at least max_model_len "
            f"({max_model_len}) when chunked prefill is off: raise it or set --enable-chunked-prefill."
        )
    return SchedulerConfig(
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_model_len=max_model_len,
        enable_chunked_prefill=args.enable_chunked_prefill,
        long_prefill_token_threshold=args.long_prefill_token_threshold,
        policy="priority" if args.scheduling_policy == "priority" else "fcfs",
    )


def _cache_layout(
    args: EngineArgs, model: ModelConfig, draft_model: ModelConfig | None, max_model_len: int
) -> CacheLayout:
    """A window that no context outgrows is none; a draft model shares the blocks, and needs all of them kept."""
    windows = [window if window < max_model_len and draft_model is None else 0 for window in model.windows]
    threshold = args.long_prefill_token_threshold if args.enable_chunked_prefill else 0
    return group_layers(windows, min(args.max_num_batched_tokens, threshold or args.max_num_batched_tokens))


def _num_blocks(args: EngineArgs, block_bytes: int, most_blocks: int, free_bytes: int) -> int:
    if free_bytes <= 0:
        raise InsufficientMemoryError(
            "The model's weights alone need more memory than is free: free some or choose a smaller model."
        )
    if args.kv_cache_memory_bytes is not None:
        budget = args.kv_cache_memory_bytes
        if budget > free_bytes:
            raise InsufficientMemoryError(
                f"kv_cache_memory_bytes ({budget:,}) is more than the {free_bytes:,} bytes that are free beside the "
                f"weights: lower --kv-cache-memory-bytes."
            )
        most = budget // block_bytes
    else:
        budget = int(free_bytes * DEFAULT_MEMORY_SHARE)
        most = most_blocks
    num_blocks = min(budget // block_bytes, most)
    if num_blocks < 1:
        raise InsufficientMemoryError(
            f"A KV cache of {budget:,} bytes does not hold one block of {block_bytes:,} bytes: raise "
            f"--kv-cache-memory-bytes or lower --block-size."
        )
    return num_blocks


def _fit_context(args: EngineArgs, max_model_len: int, capacity: int) -> int:
    """A cache smaller than the context shortens the context, unless the user insisted on its length."""
    if capacity >= max_model_len:
        return max_model_len
    if args.max_model_len is not None:
        raise InsufficientMemoryError(
            f"The KV cache holds {capacity} tokens, fewer than max_model_len ({max_model_len}): raise "
            f"--kv-cache-memory-bytes or lower --max-model-len."
        )
    return capacity


def engine_args(options: Mapping[str, Any]) -> EngineArgs:
    """Build `EngineArgs` from keyword options; those that only vLLM has are checked, and dropped.

    Raises:
        ConfigError: an option has no such name, or a value that cannot be had.
    """
    options = without_vllm_options(options)
    known = {name: value for name, value in options.items() if name in EngineArgs.__dataclass_fields__}
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"Unknown engine argument {unknown[0]!r}: the known ones are those of EngineArgs.")
    return replace(EngineArgs(), **known)
