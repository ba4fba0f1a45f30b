"""What is measured: two real models, and two with random weights in the shape of larger ones.

Random weights do for speed: it depends on shapes, not on values.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RandomShape:
    """The sizes of a model whose weights are drawn at random; see GGUF's keys of the same names."""

    architecture: str
    embedding_length: int
    block_count: int
    head_count: int
    head_count_kv: int
    key_length: int
    feed_forward_length: int
    vocab_size: int
    context_length: int
    freq_base: float
    epsilon: float
    norms_of_heads: bool


MODELS: dict[str, str | RandomShape] = {
    "smollm2-135m": "smollm2-135m-instruct",
    "gemma3-270m": "gemma-3-270m",
    "qwen3-0.6b": RandomShape(
        architecture="qwen3",
        embedding_length=1024,
        block_count=28,
        head_count=16,
        head_count_kv=8,
        key_length=128,
        feed_forward_length=3072,
        vocab_size=151_936,
        context_length=40_960,
        freq_base=1e6,
        epsilon=1e-6,
        norms_of_heads=True,
    ),
    "llama3.2-1b": RandomShape(
        architecture="llama",
        embedding_length=2048,
        block_count=16,
        head_count=32,
        head_count_kv=8,
        key_length=64,
        feed_forward_length=8192,
        vocab_size=128_256,
        context_length=131_072,
        freq_base=500_000.0,
        epsilon=1e-5,
        norms_of_heads=False,
    ),
}
"""Name -> the built-in model that it is, or the shape to fill with random weights."""
