"""Gemma 1, 2 and 3, text only. (Gemma Team 2024, 2024, 2025)

Beside Llama: norms' weights are trained around zero, embeddings are scaled, the gate is a GELU. Gemma 2 has norms on
both sides of attention and MLP, a window in every second layer, and soft caps; Gemma 3 has norms of query and key heads
in place of the caps, and a rotary base of its own for layers with a window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from interleaf.layers.attention import Attention, AttentionTraits
from interleaf.layers.linear import Embedding, GatedMlp
from interleaf.layers.norm import RmsNorm
from interleaf.layers.rotary import cos_sin_table
from interleaf.layers.weights import Weights
from interleaf.model_config import ModelConfig
from interleaf.models.llama import LlamaForCausalLM, Unfinished
from interleaf.ops import Array, AttentionShape, LayerCache, ModelInput, Ops

NORM_PLUS = 1.0
"""Weights of norms are what the factors have beyond one."""


class GemmaLayer:
    """residual += attention(norm(residual)); residual += mlp(norm(residual))."""

    mlp_norm_name = "post_attention_layernorm"

    def __init__(
        self,
        config: ModelConfig,
        ops: Ops,
        weights: Weights,
        cos_sin: Array,
        shape: AttentionShape,
        traits: AttentionTraits,
    ) -> None:
        width, eps = config.hidden_size, config.norm_eps
        self.input_norm = RmsNorm(ops, weights.under("input_layernorm"), width, eps, NORM_PLUS)
        self.attention = Attention(ops, weights.under("self_attn"), width, shape, cos_sin, traits, eps)
        self.mlp_norm = RmsNorm(ops, weights.under(self.mlp_norm_name), width, eps, NORM_PLUS)
        self.mlp = GatedMlp(ops, weights.under("mlp"), width, config.intermediate_size, activation="gelu_tanh")

    def attend(self, residual: Array, cache: LayerCache, inputs: ModelInput) -> Array:
        return self.attention.heads(self.input_norm(residual), cache, inputs)

    def finish(self, attended: Array, residual: Array) -> Array:
        residual = self.attention.add_output(attended, residual)
        return self.mlp(self.mlp_norm(residual), residual)


class SandwichLayer(GemmaLayer):
    """residual += norm(attention(norm(residual))); residual += norm(mlp(norm(residual)))."""

    mlp_norm_name = "pre_feedforward_layernorm"

    def __init__(
        self,
        config: ModelConfig,
        ops: Ops,
        weights: Weights,
        cos_sin: Array,
        shape: AttentionShape,
        traits: AttentionTraits,
    ) -> None:
        super().__init__(config, ops, weights, cos_sin, shape, traits)
        width, eps = config.hidden_size, config.norm_eps
        self.attended_norm = RmsNorm(ops, weights.under("post_attention_layernorm"), width, eps, NORM_PLUS)
        self.gated_norm = RmsNorm(ops, weights.under("post_feedforward_layernorm"), width, eps, NORM_PLUS)

    def finish(self, attended: Array, residual: Array) -> Array:
        residual = self.attended_norm.add(self.attention.output_apart(attended), residual)
        return self.gated_norm.add(self.mlp.apart(self.mlp_norm(residual)), residual)


class GemmaForCausalLM(LlamaForCausalLM):
    """The first Gemma."""

    layer_class = GemmaLayer
    qk_norm = False

    def __init__(self, config: ModelConfig, ops: Ops, weights: Weights, max_positions: int) -> None:
        body, width, words = weights.under("model"), config.hidden_size, config.vocab_size
        self.ops = ops
        self.embedding = Embedding(ops, body, "embed_tokens", words, width, scale=math.sqrt(width))
        self.layers = self.make_layers(config, ops, body.under("layers"), max_positions)
        self.norm = RmsNorm(ops, body.under("norm"), width, config.norm_eps, NORM_PLUS)
        tied = config.tie_word_embeddings
        self.head = self.embedding if tied else Embedding(ops, weights, "lm_head", words, width)
        self.logits_cap = float(config.hf.get("final_logit_softcapping") or 0.0)

    def make_layers(self, config: ModelConfig, ops: Ops, weights: Weights, max_positions: int) -> Sequence[GemmaLayer]:
        longest = config.max_position_embeddings
        everywhere = ops.table(cos_sin_table(config.rope, longest, max_positions))
        local = ops.table(cos_sin_table(config.local_rope, longest, max_positions)) if config.local_rope else everywhere
        scale = float(config.hf.get("query_pre_attn_scalar") or config.head_dim) ** -0.5
        cap = float(config.hf.get("attn_logit_softcapping") or 0.0)
        bias = bool(config.hf.get("attention_bias"))
        traits = AttentionTraits(bias, bias, self.qk_norm, NORM_PLUS)
        layers = []
        for i, window in enumerate(config.windows):
            shape = AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim, scale, window, cap)
            cos_sin = local if window else everywhere
            layers.append(self.layer_class(config, ops, weights.under(f"{i}"), cos_sin, shape, traits))
        return layers

    def logits(self, state: Unfinished, inputs: ModelInput) -> Array:
        logits = super().logits(state, inputs)
        return self.ops.soft_cap(logits, self.logits_cap) if self.logits_cap else logits


class Gemma2ForCausalLM(GemmaForCausalLM):
    """Norms on both sides, soft caps, windows."""

    layer_class = SandwichLayer


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    """Norms of query and key heads."""

    qk_norm = True
