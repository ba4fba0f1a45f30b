"""Linear layers, each with its weights fused as the ops want them."""

from __future__ import annotations

from interleaf.layers.weights import Weights
from interleaf.ops import Array, LinearWeight, ModelInput, Ops


def stacked(
    ops: Ops, weights: Weights, parts: dict[str, int], k: int, bias: bool, interleaved: bool = False, head: bool = False
) -> LinearWeight:
    """One weight of several projections of the same input: name -> number of outputs."""
    return ops.linear_weight(
        [weights.take(f"{name}.weight", n, k) for name, n in parts.items()],
        [weights.take(f"{name}.bias", n) for name, n in parts.items()] if bias else (),
        interleaved,
        head,
    )


class GatedMlp:
    """down(activation(gate(x)) * up(x)), added to the residual. (Shazeer 2020)

    Args:
        activation: "silu" or "gelu_tanh".
    """

    def __init__(
        self,
        ops: Ops,
        weights: Weights,
        hidden_size: int,
        intermediate_size: int,
        bias: bool = False,
        activation: str = "silu",
    ) -> None:
        self.ops = ops
        both = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up = stacked(ops, weights, both, hidden_size, bias, interleaved=True)
        self.down = stacked(ops, weights, {"down_proj": hidden_size}, intermediate_size, bias)
        self.gated = {"silu": ops.linear_silu_mul, "gelu_tanh": ops.linear_gelu_mul}[activation]

    def __call__(self, x: Array, residual: Array) -> Array:
        return self.ops.linear_add(self.gated(x, self.gate_up), self.down, residual)

    def apart(self, x: Array) -> Array:
        """The output by itself, float32, for models that do something with it before they add it."""
        return self.ops.linear(self.gated(x, self.gate_up), self.down)


class Embedding:
    """The word table, its rows times `scale`; also the output head of models that tie the two."""

    def __init__(
        self, ops: Ops, weights: Weights, name: str, vocab_size: int, hidden_size: int, scale: float = 1.0
    ) -> None:
        self.ops = ops
        self.table = stacked(ops, weights, {name: vocab_size}, hidden_size, bias=False, head=True)
        self.scale = scale

    def __call__(self, inputs: ModelInput) -> Array:
        return self.ops.embedding(inputs, self.table, self.scale)

    def logits(self, x: Array) -> Array:
        """Scores of every word: float32 [L, V]."""
        return self.ops.linear(x, self.table)
