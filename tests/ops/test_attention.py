"""rotary_cache and attention against the reference, over paged caches in mixed batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interleaf import _native
from interleaf.ops import AttentionShape, ModelInput
from interleaf.ops.cpu import CpuOps
from interleaf.ops.reference import ReferenceOps
from tests.ops.native import LEVELS, activation, assert_close, cpu_ops, host_tensor, model_input, run

SHAPES = [
    AttentionShape(4, 2, 16, 0.25),
    AttentionShape(9, 3, 64, 0.125),
    AttentionShape(2, 2, 8, 0.35),
    AttentionShape(8, 1, 40, 0.16),
    AttentionShape(60, 1, 16, 0.25),
    AttentionShape(4, 2, 32, 0.18, window=21),
    AttentionShape(2, 1, 256, 0.0625, window=40, soft_cap=2.5),
    AttentionShape(3, 3, 18, 0.4, soft_cap=0.7),
]
DTYPES = [("bfloat16", "auto"), ("float32", "auto"), ("bfloat16", "int8"), ("float32", "int8")]
STEPS = [
    [(0, 5), (0, 1), (0, 70)],
    [(5, 1), (1, 30), (70, 1)],
    [(6, 2), (31, 1), (71, 190)],
    [(8, 1), (32, 1), (261, 1)],
]
"""Per step and sequence: tokens computed before, tokens of this step. Lengths cross the attention chunk."""


def cos_sin(positions: int, rotary_dim: int) -> np.ndarray:
    angles = np.arange(positions)[:, None] * 0.7 ** np.arange(rotary_dim // 2)[None, :]
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def lay_out(inputs: ModelInput, step: list[tuple[int, int]], block_size: int, last_row: int = 7) -> int:
    """Fill the inputs for a step; sequence i lives in batch row `last_row` - i and every third block."""
    token = 0
    for i, (before, count) in enumerate(step):
        inputs.sequence_rows[i] = last_row - i
        inputs.query_start[i + 1] = token + count
        inputs.context_lengths[i] = before + count
        inputs.block_tables[last_row - i] = np.arange(inputs.block_tables.shape[1]) * 3 + i
        for position in range(before, before + count):
            inputs.positions[token] = position
            block = inputs.block_tables[last_row - i][position // block_size]
            inputs.slots[token] = block * block_size + position % block_size
            token += 1
    inputs.size.num_tokens, inputs.size.num_sequences = token, len(step)
    return token


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("dtype", "kv_cache_dtype"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_over_steps(level: str, dtype: str, kv_cache_dtype: str, shape: AttentionShape) -> None:
    torch.manual_seed(0)
    block_size = 16 if shape.num_kv_heads == 2 else 48
    ops, reference = cpu_ops(level, dtype, kv_cache_dtype=kv_cache_dtype), ReferenceOps(dtype, kv_cache_dtype)
    inputs = model_input()
    blocks = inputs.block_tables.shape[1] * 3
    (cache,) = ops.new_caches(1, blocks, block_size, shape.num_kv_heads, shape.head_dim)
    (expected_cache,) = reference.new_caches(1, blocks, block_size, shape.num_kv_heads, shape.head_dim)
    table = cos_sin(400, shape.head_dim - shape.head_dim // 4 // 2 * 2)
    norm = host_tensor(torch.rand(shape.head_dim) + 0.5, "float32")
    for step in STEPS:
        rows = lay_out(inputs, step, block_size)
        qkv = torch.randn(rows, (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim)
        expected_q = reference.rotary_cache(
            qkv, shape, reference.table(table), expected_cache, inputs, reference.vector(norm), None, 1e-5
        )
        source, vector, native_table = activation(ops, qkv, _native.DType.float32), ops.vector(norm), ops.table(table)
        actual_q = run(
            ops,
            lambda s=source, v=vector, t=native_table: ops.rotary_cache(s, shape, t, cache, inputs, v, None, 1e-5),
            rows,
            inputs,
        )
        assert_close(actual_q, expected_q, dtype)
        expected = reference.attention(expected_q, shape, expected_cache, inputs)
        queries = activation(ops, expected_q)
        actual = run(ops, lambda q=queries: ops.attention(q, shape, cache, inputs), rows, inputs, len(step))
        assert_close(actual, expected, "bfloat16" if kv_cache_dtype == "int8" else dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("dtype", "kv_cache_dtype"), DTYPES)
@pytest.mark.parametrize("window", [0, 50])
def test_attention_has_the_same_bits_however_it_is_cut(
    level: str, dtype: str, kv_cache_dtype: str, window: int
) -> None:
    """One sequence in one piece, in pieces, and beside another, on one to five threads."""
    shape = AttentionShape(6, 2, 24, 0.2, window)
    torch.manual_seed(1)
    length = 290
    qkv = torch.randn(length, 10 * 24)
    results = []
    for cuts, threads in (([290], 1), ([290], 2), ([1, 63, 200, 26], 2), ([17] * 17 + [1], 1), ([280, *[1] * 10], 5)):
        ops, inputs = cpu_ops(level, dtype, threads, kv_cache_dtype=kv_cache_dtype), model_input()
        (cache,) = ops.new_caches(1, 120, 16, 2, 24)
        pieces, before = [], 0
        for count in cuts:
            lay_out(inputs, [(before, count), (0, 1)] if count < 100 else [(before, count)], 16)
            rows = inputs.size.num_tokens
            part = torch.cat([qkv[before : before + count], torch.randn(rows - count, 240)])
            source, table = activation(ops, part, _native.DType.float32), ops.table(cos_sin(400, 24))

            def forward(ops=ops, source=source, table=table, cache=cache, inputs=inputs):
                return ops.attention(ops.rotary_cache(source, shape, table, cache, inputs), shape, cache, inputs)

            pieces.append(run(ops, forward, rows, inputs, inputs.size.num_sequences)[:count])
            before += count
        results.append(torch.cat(pieces))
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_scores_far_apart(level: str, dtype: str) -> None:
    """Softmax weights down to where they are denormal, and zero."""
    shape, block_size, length = AttentionShape(2, 1, 32, 1.0), 16, 300
    torch.manual_seed(5)
    ops, reference, inputs = cpu_ops(level, dtype), ReferenceOps(dtype), model_input()
    (cache,), (expected_cache,) = ops.new_caches(1, 120, 16, 1, 32), reference.new_caches(1, 120, 16, 1, 32)
    lay_out(inputs, [(0, length)], block_size)
    table, qkv = cos_sin(400, 32), torch.randn(length, 128) * torch.tensor([4.0] * 96 + [1.0] * 32)
    q = reference.rotary_cache(qkv, shape, reference.table(table), expected_cache, inputs, None, None, 1e-5)
    source, native_table = activation(ops, qkv, _native.DType.float32), ops.table(table)
    run(ops, lambda: ops.rotary_cache(source, shape, native_table, cache, inputs), length, inputs)
    queries = activation(ops, q)
    actual = run(ops, lambda: ops.attention(queries, shape, cache, inputs), length, inputs, 1)
    assert_close(actual, reference.attention(q, shape, expected_cache, inputs), dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_attention_ignores_what_an_earlier_owner_left_in_its_blocks(level: str, kv_cache_dtype: str) -> None:
    shape = AttentionShape(2, 1, 16, 0.25)
    results = []
    for poison in (0.0, float("nan")):
        torch.manual_seed(2)
        ops, inputs = cpu_ops(level, "bfloat16", kv_cache_dtype=kv_cache_dtype), model_input()
        (cache,) = ops.new_caches(1, 120, 16, 1, 16)
        for fill in (poison, 1.0):
            count = 16 if fill != 1.0 else 5
            lay_out(inputs, [(0, count)], 16)
            qkv = torch.randn(count, 64) * fill
            source, table = activation(ops, qkv, _native.DType.float32), ops.table(cos_sin(400, 16))

            def forward(ops=ops, source=source, table=table, cache=cache, inputs=inputs):
                return ops.attention(ops.rotary_cache(source, shape, table, cache, inputs), shape, cache, inputs)

            result = run(ops, forward, count, inputs, 1)
        results.append(result)
    assert torch.isfinite(results[0]).all()
    assert torch.equal(results[0], results[1])


def long_decode(ops: CpuOps, shape: AttentionShape) -> torch.Tensor:
    """A few rows of a sequence of 1,500 tokens, beside a short one and alone; step after step."""
    torch.manual_seed(3)
    inputs = model_input(2, 100)
    (cache,) = ops.new_caches(1, 300, 16, shape.num_kv_heads, shape.head_dim)
    table, width = ops.table(cos_sin(1600, shape.head_dim)), shape.num_heads + 2 * shape.num_kv_heads
    for before in range(0, 1500, 250):
        rows = lay_out(inputs, [(before, 250), (before, 40)], 16, last_row=1)
        qkv = activation(ops, torch.randn(rows, width * shape.head_dim), _native.DType.float32)
        run(ops, lambda q=qkv: ops.rotary_cache(q, shape, table, cache, inputs), rows, inputs)
    results = []
    for step in ([(1499, 1), (3, 1)], [(1496, 4), (40, 2)], [(1499, 1)]):
        rows = lay_out(inputs, step, 16, last_row=1)
        q = activation(ops, torch.randn(rows, shape.num_heads * shape.head_dim))
        results.append(run(ops, lambda q=q: ops.attention(q, shape, cache, inputs), rows, inputs, len(step)))
    return torch.cat(results)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("dtype", "kv_cache_dtype"), DTYPES)
@pytest.mark.parametrize("shape", [AttentionShape(6, 2, 32, 0.2), AttentionShape(8, 1, 24, 0.2, window=700)])
def test_a_long_sequence_has_the_same_bits_on_any_number_of_threads(
    level: str, dtype: str, kv_cache_dtype: str, shape: AttentionShape
) -> None:
    """Few rows over many chunks fall to several threads, which leave their parts to the last of them."""
    results = [
        long_decode(cpu_ops(level, dtype, threads, kv_cache_dtype=kv_cache_dtype), shape) for threads in (1, 2, 3, 7)
    ]
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_copy_blocks(kv_cache_dtype: str) -> None:
    shape = AttentionShape(2, 2, 16, 0.25)
    ops, inputs = cpu_ops(LEVELS[-1], "bfloat16", kv_cache_dtype=kv_cache_dtype), model_input()
    cache = ops.new_caches(3, 120, 16, 2, 16)[1]
    lay_out(inputs, [(0, 20)], 16)
    qkv = activation(ops, torch.randn(20, 96), _native.DType.float32)
    table = ops.table(cos_sin(400, 16))
    q = activation(ops, torch.randn(20, 32))
    run(ops, lambda: ops.rotary_cache(qkv, shape, table, cache, inputs), 20, inputs)
    before = run(ops, lambda: ops.attention(q, shape, cache, inputs), 20, inputs, 1)
    ops.copy_blocks([cache], [(int(inputs.block_tables[7][0]), 100), (int(inputs.block_tables[7][1]), 50)])
    inputs.block_tables[7][:2] = [100, 50]
    assert torch.equal(run(ops, lambda: ops.attention(q, shape, cache, inputs), 20, inputs, 1), before)
