"""A checkpoint's config.json becomes the facts that the engine and every model family need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from interleaf import families
from interleaf.errors import CorruptCheckpointError, UnsupportedModelError

MAX_HEAD_DIM = 1024
"""Values of an attention head: the kernels keep one in a buffer of this size."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding: the checkpoint's `rope_scaling` (or `rope_parameters`) as given."""

    theta: float = 10000.0
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    rotary_dim: int = 0
    scaling: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Facts of a decoder that the engine and every model family need.

    `hf` is the checkpoint's whole config.json (a GGUF file's metadata under the same names), for
    what only one family knows, with the family's defaults. `windows` says for each layer how many keys a query sees,
    itself included; 0 is all. `local_rope` is that of the layers with a window, where they have one of their own.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope: RopeConfig
    hf: Mapping[str, Any]
    windows: tuple[int, ...]
    local_rope: RopeConfig | None = None


def parse_model_config(hf: Mapping[str, Any]) -> ModelConfig:
    """Read the facts every decoder has from a config.json.

    Raises:
        UnsupportedModelError: no architecture is named, or its rotary scaling is unknown.
        CorruptCheckpointError: a size is missing or makes no sense.
    """
    architectures = hf.get("architectures")
    if not isinstance(architectures, (list, tuple)) or not architectures or not isinstance(architectures[0], str):
        raise UnsupportedModelError("The checkpoint's config.json names no architecture, so no model can be chosen.")
    architecture = architectures[0]
    hf = families.DEFAULTS.get(architecture, {}) | dict(hf)
    hidden_size = _size(hf, "hidden_size")
    num_heads = _size(hf, "num_attention_heads")
    num_kv_heads = _size(hf, "num_key_value_heads", num_heads)
    head_dim = _size(hf, "head_dim", hidden_size // num_heads)
    if num_heads % num_kv_heads or head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise CorruptCheckpointError(
            f"The checkpoint's config.json is inconsistent: {num_heads} attention heads, "
            f"{num_kv_heads} key-value heads, {head_dim} values a head."
        )
    num_layers = _size(hf, "num_hidden_layers")
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden_size,
        intermediate_size=_size(hf, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=_size(hf, "vocab_size"),
        norm_eps=_positive(hf, "rms_norm_eps", 1e-6),
        max_position_embeddings=_size(hf, "max_position_embeddings", 2048),
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
        rope=_rope(hf, head_dim),
        hf=hf,
        windows=families.layer_windows(hf, architecture, num_layers),
        local_rope=_local_rope(hf, head_dim),
    )


def _local_rope(hf: Mapping[str, Any], head_dim: int) -> RopeConfig | None:
    """`rope_local_base_freq`, or Transformers 5's `rope_parameters` by kind of layer."""
    theta = _positive(hf, "rope_local_base_freq", 0.0)
    by_kind = hf.get("rope_parameters")
    local = by_kind.get("sliding_attention") if isinstance(by_kind, Mapping) else None
    if local is None:
        return RopeConfig(theta, rotary_dim=head_dim) if theta else None
    return _rope({"rope_theta": theta or None, "rope_parameters": local}, head_dim)


def _rope(hf: Mapping[str, Any], head_dim: int) -> RopeConfig:
    """Both spellings: `rope_theta` + `rope_scaling`, and Transformers 5's `rope_parameters`."""
    given = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if isinstance(given, Mapping) and "full_attention" in given:
        given = given["full_attention"]
    if not isinstance(given, Mapping):
        raise CorruptCheckpointError(f"The checkpoint's config.json has no usable rotary scaling (found {given!r}).")
    scaling = dict(given)
    kind: Any = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear", "dynamic", "llama3", "yarn"):
        raise UnsupportedModelError(f"The checkpoint's rotary scaling {kind!r} is not supported.")
    theta = _positive(scaling, "rope_theta", _positive(hf, "rope_theta", 10000.0))
    partial = _positive(scaling, "partial_rotary_factor", _positive(hf, "partial_rotary_factor", 1.0))
    if partial > 1.0:
        raise CorruptCheckpointError(f"The checkpoint's config.json rotates {partial} times each head: 1 is the most.")
    _positive(scaling, "factor", 1.0)
    return RopeConfig(theta, kind, int(head_dim * partial), MappingProxyType(scaling))


def _positive(hf: Mapping[str, Any], name: str, default: float) -> float:
    value = hf.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise CorruptCheckpointError(f"The checkpoint's config.json has no usable {name!r} (found {value!r}).")
    return float(value)


def _size(hf: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = hf.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise CorruptCheckpointError(f"The checkpoint's config.json has no usable {name!r} (found {value!r}).")
    return value
