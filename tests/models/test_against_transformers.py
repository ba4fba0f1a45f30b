"""Every supported variant, as a tiny random checkpoint, greedy and with logprobs, against Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interleaf import LLM, SamplingParams
from tests.loader import tiny
from tests.models.transformers_peer import check_greedy, load_peer

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
QWEN_WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}

VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (tiny.tiny_llama, {}),
    "llama-tied": (tiny.tiny_llama, {"tie_word_embeddings": True}),
    "llama-untied": (tiny.tiny_llama, {"tie_word_embeddings": False}),
    "llama-multi-head": (tiny.tiny_llama, {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "llama-one-kv-head": (tiny.tiny_llama, {"num_attention_heads": 4, "num_key_value_heads": 1}),
    "llama-biases": (tiny.tiny_llama, {"attention_bias": True, "mlp_bias": True}),
    "llama-odd-sizes": (
        tiny.tiny_llama,
        {"hidden_size": 60, "intermediate_size": 74, "num_attention_heads": 6, "num_key_value_heads": 3},
    ),
    "llama-rope-linear": (
        tiny.tiny_llama,
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "llama-rope-dynamic": (
        tiny.tiny_llama,
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "llama-rope-llama3": (tiny.tiny_llama, {"rope_parameters": LLAMA3}),
    "llama-rope-yarn": (tiny.tiny_llama, {"rope_parameters": YARN}),
    "mistral": (tiny.tiny_mistral, {}),
    "mistral-window": (tiny.tiny_mistral, {"sliding_window": 24}),
    "qwen2": (tiny.tiny_qwen2, {}),
    "qwen2-tied": (tiny.tiny_qwen2, {"tie_word_embeddings": True}),
    "qwen2-window": (tiny.tiny_qwen2, QWEN_WINDOW),
    "qwen3": (tiny.tiny_qwen3, {}),
    "qwen3-yarn": (tiny.tiny_qwen3, {"rope_parameters": YARN}),
    "qwen3-tied": (tiny.tiny_qwen3, {"tie_word_embeddings": True}),
    "gemma": (tiny.tiny_gemma, {}),
    "gemma-odd-sizes": (tiny.tiny_gemma, {"hidden_size": 60, "intermediate_size": 74, "head_dim": 18}),
    "gemma2": (tiny.tiny_gemma2, {}),
    "gemma2-uncapped": (tiny.tiny_gemma2, {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": (tiny.tiny_gemma3, {}),
    "gemma3-wide-heads": (tiny.tiny_gemma3, {"head_dim": 256, "num_key_value_heads": 1}),
    "gemma3-rope-linear": (tiny.tiny_gemma3, {"rope_parameters": GEMMA3_ROPE}),
    "gemma3-odd-sizes": (
        tiny.tiny_gemma3,
        {"hidden_size": 60, "intermediate_size": 74, "head_dim": 18, "sliding_window": 7, "attention_bias": True},
    ),
    "gemma3-untied": (tiny.tiny_gemma3, {"tie_word_embeddings": False, "num_attention_heads": 2}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_equals_transformers(variant: str, tmp_path: Path) -> None:
    make, options = VARIANTS[variant]
    path = make(tmp_path / variant, **options)
    peer = load_peer(path)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 384, length).tolist() for length in (1, 2, 15, 16, 17, 40, 63, 90)]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=3, prompt_logprobs=2)
    with LLM(path, dtype="float32", max_num_batched_tokens=50, kv_cache_memory_bytes=1 << 22) as llm:
        for output in llm.generate(prompts, params, use_tqdm=False):
            check_greedy(peer, output)
