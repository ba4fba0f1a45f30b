"""Rotary position embeddings as tables of cosines and sines, one row a position.

Everything a kind of scaling changes is in the table: the kernels only look rows up. So a key depends on nothing but
its own token and position, whichever sequence length it is used at, and may be cached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from interleaf.model_config import RopeConfig


def cos_sin_table(rope: RopeConfig, max_position_embeddings: int, max_positions: int) -> np.ndarray:
    """float32 [max_positions, rotary_dim]: the cosines, then the sines. (Su et al. 2021)

    Args:
        max_position_embeddings: of the checkpoint; scaled kinds depend on the length the model was trained at.
    """
    positions = np.arange(max_positions, dtype=np.float64)
    if rope.kind == "dynamic":
        angles = _dynamic_angles(rope, max_position_embeddings, positions)
        scale = 1.0
    else:
        frequencies, scale = _FREQUENCIES[rope.kind](rope, max_position_embeddings)
        angles = positions[:, None] * frequencies[None, :]
    # Transformers computes angles in float32, and so must whoever wants its numbers at large positions.
    angles = angles.astype(np.float32)
    table: np.ndarray = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * np.float32(scale)
    return table


def _base_frequencies(theta: float, rotary_dim: int) -> np.ndarray:
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    frequencies: np.ndarray = 1.0 / np.power(np.float32(theta), exponents)
    return frequencies.astype(np.float32)


def _default(rope: RopeConfig, _: int) -> tuple[np.ndarray, float]:
    return _base_frequencies(rope.theta, rope.rotary_dim), 1.0


def _linear(rope: RopeConfig, _: int) -> tuple[np.ndarray, float]:
    """Positions divided by the factor. (Chen et al. 2023)"""
    return _base_frequencies(rope.theta, rope.rotary_dim) / np.float32(rope.scaling["factor"]), 1.0


def _llama3(rope: RopeConfig, _: int) -> tuple[np.ndarray, float]:
    """Llama 3.1: low frequencies are divided by the factor, high ones kept, those between interpolated."""
    scaling = rope.scaling
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    frequencies = _base_frequencies(rope.theta, rope.rotary_dim)
    wavelengths = 2 * math.pi / frequencies
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * frequencies / factor + smooth * frequencies, 1.0


def _yarn(rope: RopeConfig, max_position_embeddings: int) -> tuple[np.ndarray, float]:
    """YaRN: interpolation by frequency, and a scale on cosines and sines. (Peng et al. 2023)"""
    scaling, dim = rope.scaling, rope.rotary_dim
    original = float(scaling.get("original_max_position_embeddings") or max_position_embeddings)
    factor = float(scaling["factor"])

    def dimension_of(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = dimension_of(float(scaling.get("beta_fast") or 32.0))
    high = dimension_of(float(scaling.get("beta_slow") or 1.0))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / max(high - low, 0.001), 0.0, 1.0)
    frequencies = _base_frequencies(rope.theta, dim)
    return frequencies / factor * ramp + frequencies * (1 - ramp), _yarn_scale(scaling, factor)


def _yarn_scale(scaling: Mapping[str, Any], factor: float) -> float:
    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(float(scaling["mscale"])) / magnitude(float(scaling["mscale_all_dim"]))
    return magnitude(1.0)


def _dynamic_angles(rope: RopeConfig, max_position_embeddings: int, positions: np.ndarray) -> np.ndarray:
    """NTK-aware scaling whose base grows with the length: position p takes the base of a text of p + 1 tokens.

    That is what token-by-token generation with a cache gives each key; within the trained length nothing is scaled.
    """
    factor, dim = float(rope.scaling["factor"]), rope.rotary_dim
    lengths = np.maximum(positions + 1, max_position_embeddings)
    growth = factor * lengths / max_position_embeddings - (factor - 1)
    bases = rope.theta * growth ** (dim / (dim - 2)) if dim > 2 else np.full_like(lengths, rope.theta)
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = (1.0 / bases.astype(np.float32)[:, None] ** exponents[None, :]).astype(np.float32)
    angles: np.ndarray = positions[:, None] * frequencies
    return angles


_FREQUENCIES = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
