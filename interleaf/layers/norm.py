"""Normalization."""

from __future__ import annotations

from interleaf.layers.weights import Weights
from interleaf.ops import Array, ModelInput, Ops


class RmsNorm:
    """x / sqrt(mean(x^2) + eps) * weight. (Zhang & Sennrich 2019)"""

    def __init__(self, ops: Ops, weights: Weights, width: int, eps: float) -> None:
        self.ops = ops
        self.weight = ops.vector(weights.take("weight", width))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        return self.ops.rms_norm(x, self.weight, self.eps)

    def of_logits_rows(self, x: Array, inputs: ModelInput, exact: bool = False) -> Array:
        """Only the rows in `inputs.logits_index`; `exact` is as float32 whatever the arithmetic's dtype."""
        return self.ops.rms_norm_of_logits_rows(x, self.weight, self.eps, inputs, exact)
