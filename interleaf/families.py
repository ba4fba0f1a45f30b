"""What a model family knows about its checkpoints' config.json: values that are left out, and attention windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GEMMA: dict[str, Any] = {"head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True}
GEMMA2: dict[str, Any] = GEMMA | {
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
}
GEMMA3: dict[str, Any] = GEMMA | {
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "Qwen2ForCausalLM": {"use_sliding_window": False},
    "Qwen3ForCausalLM": {"use_sliding_window": False},
    "GemmaForCausalLM": GEMMA,
    "Gemma2ForCausalLM": GEMMA2,
    "Gemma3ForCausalLM": GEMMA3,
}
"""Architecture -> what its config.json means where it is silent."""

SCALED_LENGTHS = frozenset({"Gemma3ForCausalLM"})
"""Architectures whose `max_position_embeddings` counts the rotary scaling already."""


def layer_windows(hf: Mapping[str, Any], architecture: str, num_layers: int) -> tuple[int, ...]:
    """Keys that a query of each layer sees, itself included; 0 is all.

    Args:
        hf: config.json with the family's defaults.
    """
    window = hf.get("sliding_window")
    unused = hf.get("use_sliding_window") is False or architecture not in _IS_WINDOWED
    if unused or type(window) is not int or window <= 0:
        return (0,) * num_layers
    named = hf.get("layer_types")
    if isinstance(named, (list, tuple)) and len(named) == num_layers:
        return tuple(window if kind == "sliding_attention" else 0 for kind in named)
    is_windowed = _IS_WINDOWED[architecture]
    return tuple(window if is_windowed(hf, layer) else 0 for layer in range(num_layers))


def _every_layer(hf: Mapping[str, Any], layer: int) -> bool:
    return True


def _upper_layers(hf: Mapping[str, Any], layer: int) -> bool:
    """Qwen2 and 3: layers from `max_window_layers` on."""
    return layer >= int(hf.get("max_window_layers", 0))


def _all_but_every_nth(hf: Mapping[str, Any], layer: int) -> bool:
    """Gemma 2 and 3: the last layer of each `sliding_window_pattern` sees all keys."""
    return (layer + 1) % int(hf["sliding_window_pattern"]) != 0


_IS_WINDOWED = {
    "MistralForCausalLM": _every_layer,
    "Qwen2ForCausalLM": _upper_layers,
    "Qwen3ForCausalLM": _upper_layers,
    "Gemma2ForCausalLM": _all_but_every_nth,
    "Gemma3ForCausalLM": _all_but_every_nth,
}
