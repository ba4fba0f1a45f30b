"""Options that vLLM has and this engine cannot have: which are taken, and which are refused.

Scripts that were written for vLLM bring them along. An option that would change no answer here is taken, and the log
says in one line why it has no effect; one whose being ignored would change what the user gets is refused, with what
to do in its place. Both the command line and the keyword options of `LLM` and `AsyncEngine` come through here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from interleaf.errors import ConfigError

# `interleaf.observe` stands on the configuration, which stands on this.
logger = logging.getLogger(__name__)

_NO_COMPILING = "nothing is compiled or captured; the forward pass is recorded once, at the start"
_OWN_SCHEDULER = "the scheduler has no such choice"
_TEXT_ONLY = "models read and write text only"
_ONE_MACHINE = "the model runs in one process on one machine, with --threads threads"

WITHOUT_EFFECT: Mapping[str, str] = {
    "gpu_memory_utilization": "the KV cache takes up to half of the free memory, or kv_cache_memory_bytes",
    "device_memory_utilization": "the KV cache takes up to half of the free memory, or kv_cache_memory_bytes",
    "swap_space": "preempted sequences are computed again, never swapped out",
    "cpu_offload_gb": "weights are in the CPU's memory anyway",
    "max_seq_len_to_capture": _NO_COMPILING,
    "cuda_graph_sizes": _NO_COMPILING,
    "cudagraph_capture_sizes": _NO_COMPILING,
    "max_cudagraph_capture_size": _NO_COMPILING,
    "compilation_config": _NO_COMPILING,
    "optimization_level": _NO_COMPILING,
    "num_lookahead_slots": _OWN_SCHEDULER,
    "num_scheduler_steps": _OWN_SCHEDULER,
    "scheduler_delay_factor": _OWN_SCHEDULER,
    "max_num_partial_prefills": _OWN_SCHEDULER,
    "max_long_partial_prefills": _OWN_SCHEDULER,
    "preemption_mode": "preempted sequences are computed again",
    "distributed_executor_backend": _ONE_MACHINE,
    "max_parallel_loading_workers": "weights are loaded by all threads",
    "safetensors_load_strategy": "files are mapped",
    "model_loader_extra_config": "there is one loader",
    "prefix_caching_hash_algo": "there is one",
    "attention_backend": "there is one",
    "guided_decoding_backend": "there is one",
    "structured_outputs_config": "there is one backend",
    "limit_mm_per_prompt": _TEXT_ONLY,
    "mm_processor_kwargs": _TEXT_ONLY,
    "mm_processor_cache_gb": _TEXT_ONLY,
    "allowed_local_media_path": _TEXT_ONLY,
    "max_log_len": "prompts are never logged",
    "show_hidden_metrics_for_version": "no metrics are hidden",
}
"""Options with a value -> why it changes nothing."""

SWITCHES_WITHOUT_EFFECT: Mapping[str, str] = {
    "enforce_eager": _NO_COMPILING,
    "trust_remote_code": "code from checkpoints is never run",
    "async_scheduling": "the next step is always prepared beside the one that runs",
    "use_v2_block_manager": "there is one",
    "disable_custom_all_reduce": _ONE_MACHINE,
    "enable_expert_parallel": _ONE_MACHINE,
    "use_tqdm_on_load": "loading takes too short a time",
    "disable_sliding_window": "windows are as the model has them",
    "disable_cascade_attn": "there is one kind of attention",
    "disable_hybrid_kv_cache_manager": "there is one",
    "disable_log_stats": "no statistics are logged, and /metrics costs nothing until it is read",
    "disable_log_requests": "prompts are never logged",
    "enable_log_requests": "prompts are never logged; the access log has a line for each request",
    "enable_log_outputs": "answers are never logged",
    "disable_frontend_multiprocessing": "the server's engine is always a process of its own",
    "enable_sleep_mode": "it can always be put to sleep",
}
"""Options that are true or false -> why that changes nothing."""

ONE_VALUE: Mapping[str, tuple[tuple[str, ...], str]] = {
    "tensor_parallel_size": (("1",), _ONE_MACHINE),
    "pipeline_parallel_size": (("1",), _ONE_MACHINE),
    "data_parallel_size": (("1",), "start further servers, or --api-server-count front ends"),
    "decode_context_parallel_size": (("1",), _ONE_MACHINE),
    "nnodes": (("1",), _ONE_MACHINE),
    "device": (("auto", "cpu"), "this is an engine for CPUs"),
    "load_format": (("auto", "safetensors", "gguf"), "weights are read from safetensors and GGUF files"),
    "tokenizer_mode": (("auto", "hf"), "tokenizers are those of tokenizer.json and of GGUF files"),
    "config_format": (("auto", "hf"), "a model's configuration is its config.json or its GGUF file"),
    "model_impl": (("auto", "vllm"), "the models are this engine's own"),
    "task": (("auto", "generate", "embed", "embedding"), "every model generates and embeds; it does nothing else"),
    "runner": (("auto", "generate", "pooling"), "every model generates and embeds; it does nothing else"),
    "convert": (("auto", "none", "embed"), "every model generates and embeds; it does nothing else"),
    "logprobs_mode": (("raw_logprobs",), "logprobs are those of the model's own distribution"),
    "stream_interval": (("1",), "each token is sent as it comes"),
    "skip_tokenizer_init": (("false",), "texts are always tokenized here"),
    "enable_prompt_embeds": (("false",), "prompts are texts or token ids"),
    "enable_lora": (("false",), "adapters are not served: merge it into the weights"),
    "lora_modules": (("none",), "adapters are not served: merge it into the weights"),
    "hf_overrides": (("none", "{}"), "change config.json in the model's directory"),
    "rope_scaling": (("none",), "change config.json in the model's directory"),
    "rope_theta": (("none",), "change config.json in the model's directory"),
    "quantization_param_path": (("none",), "scales are found when the model is loaded"),
    "download_dir": (("none",), "set the variable HF_HUB_CACHE"),
    "hf_token": (("none", "false"), "set the variable HF_TOKEN"),
    "tokenizer_revision": (("none", "main"), "name a tokenizer in a directory with --tokenizer"),
    "code_revision": (("none",), "code from checkpoints is never run"),
    "num_gpu_blocks_override": (("none",), "set kv_cache_memory_bytes"),
    "kv_transfer_config": (("none",), "caches cannot be handed to other servers"),
}
"""Options of which only some values can be had -> those, and what is so or what to do."""
OPTIONAL_VALUES = frozenset({"skip_tokenizer_init", "enable_prompt_embeds", "enable_lora", "hf_token"})
"""Those of `ONE_VALUE` that stand alone on a command line for "true"."""

NAMES = WITHOUT_EFFECT.keys() | SWITCHES_WITHOUT_EFFECT.keys() | ONE_VALUE.keys()


def without_vllm_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are left when vLLM's are taken out, each of which is checked or told of in the log.

    Raises:
        ConfigError: one of them asks for something that cannot be had.
    """
    for name, value in options.items():
        if name in ONE_VALUE:
            _check(name, value)
        elif value not in (None, False) and (reason := WITHOUT_EFFECT.get(name) or SWITCHES_WITHOUT_EFFECT.get(name)):
            logger.warning("The option %s has no effect: %s.", name, reason)
    return {name: value for name, value in options.items() if name not in NAMES}


def _check(name: str, value: Any) -> None:
    values, reason = ONE_VALUE[name]
    if value is not None and str(value).lower() not in values:
        can_be = [one for one in values if one not in ("none", "false")]
        asked = f"{name} cannot be {str(value)[:60]!r}" if can_be else f"{name} is not supported"
        raise ConfigError(f"{asked}: {reason}.")
