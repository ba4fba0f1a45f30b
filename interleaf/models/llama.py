"""Llama, and every model that is a configuration of it: Mistral, Qwen2, Qwen3. (Touvron et al. 2023)

A family differs in its `traits`: biases, norms of query and key heads, attention windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interleaf.config import ModelConfig
from interleaf.layers.attention import Attention, AttentionTraits
from interleaf.layers.linear import Embedding, GatedMlp
from interleaf.layers.norm import RmsNorm
from interleaf.layers.rotary import cos_sin_table
from interleaf.layers.weights import Weights
from interleaf.ops import Array, AttentionShape, LayerCache, ModelInput, Ops


class DecoderLayer:
    """residual += attention(norm(residual)); residual += mlp(norm(residual))."""

    def __init__(
        self, config: ModelConfig, ops: Ops, weights: Weights, cos_sin: Any, traits: AttentionTraits, mlp_bias: bool
    ) -> None:
        width, eps = config.hidden_size, config.norm_eps
        shape = AttentionShape(
            config.num_heads, config.num_kv_heads, config.head_dim, config.head_dim**-0.5, traits.window
        )
        self.input_norm = RmsNorm(ops, weights.under("input_layernorm"), width, eps)
        self.attention = Attention(ops, weights.under("self_attn"), width, shape, cos_sin, traits, eps)
        self.mlp_norm = RmsNorm(ops, weights.under("post_attention_layernorm"), width, eps)
        self.mlp = GatedMlp(ops, weights.under("mlp"), width, config.intermediate_size, mlp_bias)

    def __call__(self, residual: Array, cache: LayerCache, inputs: ModelInput) -> Array:
        residual = self.attention(self.input_norm(residual), residual, cache, inputs)
        return self.mlp(self.mlp_norm(residual), residual)


class LlamaForCausalLM:
    """A decoder: token ids in, logits of the wanted tokens out.

    Args:
        max_positions: longest context that will be asked for.
    """

    def __init__(self, config: ModelConfig, ops: Ops, weights: Weights, max_positions: int) -> None:
        body = weights.under("model")
        cos_sin = ops.table(cos_sin_table(config.rope, config.max_position_embeddings, max_positions))
        self.embedding = Embedding(ops, body, "embed_tokens", config.vocab_size, config.hidden_size)
        self.layers = [
            DecoderLayer(
                config, ops, body.under(f"layers.{i}"), cos_sin, self.traits(config, i), bool(config.hf.get("mlp_bias"))
            )
            for i in range(config.num_layers)
        ]
        self.norm = RmsNorm(ops, body.under("norm"), config.hidden_size, config.norm_eps)
        if config.tie_word_embeddings:
            self.head = self.embedding
        else:
            self.head = Embedding(ops, weights, "lm_head", config.vocab_size, config.hidden_size)

    def traits(self, config: ModelConfig, layer: int) -> AttentionTraits:
        """What this family's layer is like."""
        bias = bool(config.hf.get("attention_bias"))
        return AttentionTraits(qkv_bias=bias, output_bias=bias)

    def forward(self, inputs: ModelInput, caches: Sequence[LayerCache]) -> Array:
        """The residual stream behind the last layer: float32 [T, hidden]."""
        residual = self.embedding(inputs)
        for layer, cache in zip(self.layers, caches, strict=True):
            residual = layer(residual, cache, inputs)
        return residual

    def logits(self, residual: Array, inputs: ModelInput) -> Array:
        """float32 [L, V] of the tokens in `inputs.logits_index`."""
        return self.head.logits(self.norm.of_logits_rows(residual, inputs))

    def hidden(self, residual: Array, inputs: ModelInput) -> Array:
        """float32 [L, hidden]: what the output head would see of the tokens in `inputs.logits_index`."""
        return self.norm.of_logits_rows(residual, inputs, exact=True)


def window_of(config: ModelConfig, layer: int) -> int:
    """Keys a query of this layer sees by the checkpoint's `layer_types`, or by `sliding_window` alone; 0 is all."""
    window = config.hf.get("sliding_window")
    layer_types = config.hf.get("layer_types")
    if not window or (layer_types and layer_types[layer] != "sliding_attention"):
        return 0
    return int(window)


class MistralForCausalLM(LlamaForCausalLM):
    """Llama with a sliding window in its first version. (Jiang et al. 2023)"""

    def traits(self, config: ModelConfig, layer: int) -> AttentionTraits:
        return AttentionTraits(window=window_of(config, layer))


class Qwen2ForCausalLM(LlamaForCausalLM):
    """Llama with biases on q, k and v. (Yang et al. 2024)"""

    def traits(self, config: ModelConfig, layer: int) -> AttentionTraits:
        return AttentionTraits(qkv_bias=True, window=self.window(config, layer))

    @staticmethod
    def window(config: ModelConfig, layer: int) -> int:
        if not config.hf.get("use_sliding_window"):
            return 0
        if not config.hf.get("layer_types") and layer < int(config.hf.get("max_window_layers", 0)):
            return 0
        return window_of(config, layer)


class Qwen3ForCausalLM(Qwen2ForCausalLM):
    """Llama with norms on query and key heads. (Yang et al. 2025)"""

    def traits(self, config: ModelConfig, layer: int) -> AttentionTraits:
        bias = bool(config.hf.get("attention_bias"))
        return AttentionTraits(qkv_bias=bias, output_bias=bias, qk_norm=True, window=self.window(config, layer))
