"""Attention of sequences that share their first chunks: the same bits as each on its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from interleaf import _native
from interleaf.ops import MOST_SHARED, SHARED_CHUNK, AttentionShape, ModelInput
from interleaf.ops.cpu import CpuOps
from tests.ops.native import LEVELS, activation, cpu_ops, model_input, run
from tests.ops.test_attention import DTYPES, cos_sin

SEQUENCES = [(600, 1), (590, 3), (530, 1), (300, 1), (280, 2), (257, 1), (20, 1), (639, 1)]
"""Keys, this step's included, and tokens of this step."""
SHARED = [2, 2, 2, 1, 1, 1, 0, 0]
SHARED_WITH = [0, 0, 0, 3, 3, 3, 6, 7]


BLOCKS = 40 * len(SEQUENCES)


def full_cache(ops: CpuOps, shape: AttentionShape, inputs: ModelInput) -> Any:
    """Keys and values in every slot."""
    (cache,) = ops.new_caches(1, BLOCKS, 16, shape.num_kv_heads, shape.head_dim)
    torch.manual_seed(4)
    for begin in range(0, BLOCKS * 16, 256):
        inputs.slots[:256] = np.arange(begin, begin + 256)
        inputs.positions[:256] = np.arange(begin, begin + 256) % 640
        qkv = torch.randn(256, (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim)
        source, table = activation(ops, qkv, _native.DType.float32), ops.table(cos_sin(640, shape.head_dim))
        run(ops, partial(ops.rotary_cache, source, shape, table, cache, inputs), 256, inputs)
    return cache


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("dtype", "kv_cache_dtype"), DTYPES)
@pytest.mark.parametrize(
    "shape",
    [AttentionShape(9, 3, 64, 0.125), AttentionShape(2, 2, 24, 0.35, soft_cap=0.7), AttentionShape(60, 1, 16, 0.25)],
)
def test_what_is_shared_changes_no_bit(level: str, dtype: str, kv_cache_dtype: str, shape: AttentionShape) -> None:
    assert _native.ATTENTION_CHUNK == SHARED_CHUNK and _native.MOST_SHARED == MOST_SHARED
    inputs = model_input(len(SEQUENCES))
    inputs.block_tables[:] = np.random.default_rng(3).permutation(BLOCKS).reshape(len(SEQUENCES), 40)
    for i, (shared, leader) in enumerate(zip(SHARED, SHARED_WITH, strict=True)):
        inputs.block_tables[i, : 16 * shared] = inputs.block_tables[leader, : 16 * shared]
    inputs.sequence_rows[:] = np.arange(len(SEQUENCES))
    inputs.context_lengths[:] = [keys for keys, _ in SEQUENCES]
    inputs.query_start[1:] = np.cumsum([tokens for _, tokens in SEQUENCES])
    inputs.shared_with[:] = SHARED_WITH
    rows = int(inputs.query_start[-1])
    results = []
    for threads in (1, 3):
        ops = cpu_ops(level, dtype, threads, kv_cache_dtype=kv_cache_dtype)
        cache = full_cache(ops, shape, inputs)
        torch.manual_seed(5)
        queries = activation(ops, torch.randn(rows, shape.num_heads * shape.head_dim))
        for chunks in ([0] * len(SEQUENCES), SHARED):
            inputs.shared_chunks[:] = chunks
            results.append(
                run(ops, partial(ops.attention, queries, shape, cache, inputs), rows, inputs, len(SEQUENCES))
            )
    assert not results[0].isnan().any()
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_the_shared_pass_is_what_finds_it() -> None:
    """What is shared is read from the leader's blocks only: with other values there, its followers' results differ."""
    shape, inputs = AttentionShape(9, 3, 64, 0.125), model_input(2)
    ops = cpu_ops(LEVELS[-1], "bfloat16")
    cache = full_cache(ops, shape, inputs)
    inputs.block_tables[:] = np.arange(80).reshape(2, 40)
    inputs.sequence_rows[:], inputs.context_lengths[:], inputs.query_start[:] = [0, 1], 300, [0, 1, 2]
    queries = activation(ops, torch.randn(2, 9 * 64))
    results = []
    for chunks in (0, 1):
        inputs.shared_chunks[:] = chunks
        results.append(run(ops, partial(ops.attention, queries, shape, cache, inputs), 2, inputs, 2))
    assert torch.equal(results[0][0], results[1][0]) and not torch.equal(results[0][1], results[1][1])
