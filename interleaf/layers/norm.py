"""Normalization."""

from __future__ import annotations

from interleaf.layers.weights import Weights
from interleaf.ops import Array, Ops


class RmsNorm:
    """x / sqrt(mean(x^2) + eps) * weight. (Zhang & Sennrich 2019)

    Args:
        plus: what the checkpoint's weight lacks: 1 in families that train it around zero.
    """

    def __init__(self, ops: Ops, weights: Weights, width: int, eps: float, plus: float = 0.0) -> None:
        self.ops = ops
        self.weight = ops.vector(weights.take("weight", width), plus)
        self.eps = eps

    def __call__(self, x: Array, exact: bool = False) -> Array:
        """`exact` is as float32 whatever the arithmetic's dtype."""
        return self.ops.rms_norm(x, self.weight, self.eps, exact)

    def add(self, x: Array, residual: Array) -> Array:
        """residual += norm(x), in place; returns it."""
        return self.ops.rms_norm_add(x, self.weight, self.eps, residual)
