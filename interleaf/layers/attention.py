"""Multi-head attention over the paged cache, with grouped key-value heads. (Ainslie et al. 2023)"""

from __future__ import annotations

from dataclasses import dataclass

from interleaf.layers.linear import stacked
from interleaf.layers.weights import Weights
from interleaf.ops import Array, AttentionShape, LayerCache, ModelInput, Ops


@dataclass(frozen=True, slots=True)
class AttentionTraits:
    """What differs between families: biases, norms of query and key heads; `norm_plus` as `RmsNorm` has it."""

    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    norm_plus: float = 0.0


class Attention:
    """Projects, rotates, caches, attends (`heads`); projects, and adds that to the residual (`add_output`).

    Args:
        cos_sin: the platform's table of cosines and sines, shared by the layers.
        eps: of the norms of query and key heads.
    """

    def __init__(
        self,
        ops: Ops,
        weights: Weights,
        hidden_size: int,
        shape: AttentionShape,
        cos_sin: Array,
        traits: AttentionTraits,
        eps: float,
    ) -> None:
        self.ops = ops
        self.shape = shape
        self.cos_sin = cos_sin
        self.eps = eps
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        parts = {"q_proj": width, "k_proj": kv_width, "v_proj": kv_width}
        self.qkv = stacked(ops, weights, parts, hidden_size, traits.qkv_bias)
        self.output = stacked(ops, weights, {"o_proj": hidden_size}, width, traits.output_bias)
        self.q_norm = self.k_norm = None
        if traits.qk_norm:
            self.q_norm = ops.vector(weights.take("q_norm.weight", shape.head_dim), traits.norm_plus)
            self.k_norm = ops.vector(weights.take("k_norm.weight", shape.head_dim), traits.norm_plus)

    def heads(self, x: Array, cache: LayerCache, inputs: ModelInput) -> Array:
        """What each head has found: [T, H D]."""
        qkv = self.ops.linear(x, self.qkv)
        q = self.ops.rotary_cache(qkv, self.shape, self.cos_sin, cache, inputs, self.q_norm, self.k_norm, self.eps)
        return self.ops.attention(q, self.shape, cache, inputs)

    def add_output(self, heads: Array, residual: Array) -> Array:
        """residual += output(heads), in place; returns it."""
        return self.ops.linear_add(heads, self.output, residual)

    def output_apart(self, heads: Array) -> Array:
        """The output by itself, float32, for models that do something with it before they add it."""
        return self.ops.linear(heads, self.output)
