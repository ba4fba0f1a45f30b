"""Llama, and every model that is a configuration of it: Mistral, Qwen2, Qwen3. (Touvron et al. 2023)

A family differs in its `traits`: biases, norms of query and key heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from interleaf.layers.attention import Attention, AttentionTraits
from interleaf.layers.linear import Embedding, GatedMlp
from interleaf.layers.norm import RmsNorm
from interleaf.layers.rotary import cos_sin_table
from interleaf.layers.weights import Weights
from interleaf.model_config import ModelConfig
from interleaf.ops import Array, AttentionShape, LayerCache, ModelInput, Ops

Unfinished = tuple[Array, Array]
"""The residual stream in front of the last layer, float32 [T, hidden], and what that layer attends to, [T, H D]."""


class Layer(Protocol):
    """A decoder's layer, in two parts."""

    def attend(self, residual: Array, cache: LayerCache, inputs: ModelInput) -> Array: ...

    def finish(self, attended: Array, residual: Array) -> Array: ...


class DecoderLayer:
    """residual += attention(norm(residual)); residual += mlp(norm(residual))."""

    def __init__(
        self, config: ModelConfig, ops: Ops, weights: Weights, cos_sin: Array, window: int, traits: AttentionTraits
    ) -> None:
        width, eps = config.hidden_size, config.norm_eps
        shape = AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim, config.head_dim**-0.5, window)
        self.input_norm = RmsNorm(ops, weights.under("input_layernorm"), width, eps)
        self.attention = Attention(ops, weights.under("self_attn"), width, shape, cos_sin, traits, eps)
        self.mlp_norm = RmsNorm(ops, weights.under("post_attention_layernorm"), width, eps)
        mlp_bias = bool(config.hf.get("mlp_bias"))
        self.mlp = GatedMlp(ops, weights.under("mlp"), width, config.intermediate_size, mlp_bias)

    def attend(self, residual: Array, cache: LayerCache, inputs: ModelInput) -> Array:
        """What the layer takes from other tokens; their keys and values are cached behind it."""
        return self.attention.heads(self.input_norm(residual), cache, inputs)

    def finish(self, attended: Array, residual: Array) -> Array:
        """What it makes of each token by itself: the residual stream behind it, in place."""
        residual = self.attention.add_output(attended, residual)
        return self.mlp(self.mlp_norm(residual), residual)


class LlamaForCausalLM:
    """A decoder: token ids in, logits of the wanted tokens out.

    Of the last layer, `forward` computes what later tokens need: keys and values. The rest is computed of those tokens
    whose logits are wanted, which of a prompt is one.

    Args:
        max_positions: longest context that will be asked for.
    """

    recordable = True

    def __init__(self, config: ModelConfig, ops: Ops, weights: Weights, max_positions: int) -> None:
        body = weights.under("model")
        self.ops = ops
        self.embedding = Embedding(ops, body, "embed_tokens", config.vocab_size, config.hidden_size)
        self.layers = self.make_layers(config, ops, body.under("layers"), max_positions)
        self.norm = RmsNorm(ops, body.under("norm"), config.hidden_size, config.norm_eps)
        if config.tie_word_embeddings:
            self.head = self.embedding
        else:
            self.head = Embedding(ops, weights, "lm_head", config.vocab_size, config.hidden_size)

    def make_layers(self, config: ModelConfig, ops: Ops, weights: Weights, max_positions: int) -> Sequence[Layer]:
        cos_sin = ops.table(cos_sin_table(config.rope, config.max_position_embeddings, max_positions))
        return [
            DecoderLayer(config, ops, weights.under(f"{i}"), cos_sin, window, self.traits(config))
            for i, window in enumerate(config.windows)
        ]

    def traits(self, config: ModelConfig) -> AttentionTraits:
        """What this family's layers are like."""
        bias = bool(config.hf.get("attention_bias"))
        return AttentionTraits(qkv_bias=bias, output_bias=bias)

    def forward(self, inputs: ModelInput, caches: Sequence[LayerCache]) -> Unfinished:
        """All tokens up to the attention of the last layer."""
        residual = self.embedding(inputs)
        for layer, cache in zip(self.layers[:-1], caches[:-1], strict=True):
            residual = layer.finish(layer.attend(residual, cache, inputs), residual)
        return residual, self.layers[-1].attend(residual, caches[-1], inputs)

    def logits(self, state: Unfinished, inputs: ModelInput) -> Array:
        """float32 [L, V] of the tokens in `inputs.logits_index`."""
        return self.head.logits(self.norm(self._finished(state, inputs)))

    def hidden(self, state: Unfinished, inputs: ModelInput) -> Array:
        """float32 [L, hidden]: what the output head would see of the tokens in `inputs.logits_index`."""
        return self.norm(self._finished(state, inputs), exact=True)

    def _finished(self, state: Unfinished, inputs: ModelInput) -> Array:
        """The residual stream behind the last layer, of the tokens in `inputs.logits_index`."""
        residual, attended = (self.ops.take_rows(one, inputs) for one in state)
        return self.layers[-1].finish(attended, residual)


class MistralForCausalLM(LlamaForCausalLM):
    """Llama with a sliding window in its first version. (Jiang et al. 2023)"""


class Qwen2ForCausalLM(LlamaForCausalLM):
    """Llama with biases on q, k and v. (Yang et al. 2024)"""

    def traits(self, config: ModelConfig) -> AttentionTraits:
        return AttentionTraits(qkv_bias=True)


class Qwen3ForCausalLM(LlamaForCausalLM):
    """Llama with norms on query and key heads. (Yang et al. 2025)"""

    def traits(self, config: ModelConfig) -> AttentionTraits:
        bias = bool(config.hf.get("attention_bias"))
        return AttentionTraits(qkv_bias=bias, output_bias=bias, qk_norm=True)
