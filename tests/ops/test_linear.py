"""linear, linear_add, the gated linears and embedding against the reference, and the promise about row counts."""

from __future__ import annotations

import pytest
import torch

from interleaf import _native
from interleaf.ops.reference import ReferenceOps
from tests.ops.native import LEVELS, activation, assert_close, cpu_ops, host_tensor, model_input, run

SHAPES = [(1, 32, 32), (1, 7, 18), (3, 33, 64), (5, 48, 35), (13, 96, 160), (16, 64, 96), (37, 100, 64), (130, 70, 96)]
"""rows, outputs, inputs: multiples of the tiles, and none."""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(level: str, dtype: str, stored: str, bias: bool) -> None:
    torch.manual_seed(0)
    ops, reference, inputs = cpu_ops(level, dtype), ReferenceOps(dtype), model_input()
    for rows, n, k in SHAPES:
        x, w, b = torch.randn(rows, k), torch.randn(n, k), torch.randn(n)
        x = x.to(reference.dtype).float()
        parts = [host_tensor(w[: n // 2], stored), host_tensor(w[n // 2 :], stored)]
        biases = [host_tensor(b[: n // 2], stored), host_tensor(b[n // 2 :], stored)] if bias else []
        expected = reference.linear(x, reference.linear_weight(parts, biases))
        weight, source = ops.linear_weight(parts, biases), activation(ops, x)
        actual = run(ops, lambda s=source, w=weight: ops.linear(s, w), rows, inputs)
        assert_close(actual, expected, "float32")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_linear_add(level: str, dtype: str) -> None:
    torch.manual_seed(1)
    ops, reference, inputs = cpu_ops(level, dtype), ReferenceOps(dtype), model_input()
    for rows, n, k in SHAPES:
        x, w, residual = torch.randn(rows, k).to(reference.dtype).float(), torch.randn(n, k), torch.randn(rows, n)
        part = host_tensor(w)
        target = activation(ops, residual, _native.DType.float32)
        expected = reference.linear_add(x, reference.linear_weight([part]), residual.clone())
        weight, source = ops.linear_weight([part]), activation(ops, x)
        actual = run(ops, lambda s=source, w=weight, t=target: ops.linear_add(s, w, t), rows, inputs)
        assert_close(actual, expected, "float32")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", ["linear_silu_mul", "linear_gelu_mul"])
def test_linear_gated(level: str, dtype: str, bias: bool, gated: str) -> None:
    torch.manual_seed(2)
    ops, reference, inputs = cpu_ops(level, dtype), ReferenceOps(dtype), model_input()
    for rows, n, k in SHAPES:
        x = torch.randn(rows, k).to(reference.dtype).float()
        gate, up = host_tensor(torch.randn(n, k) / k**0.5), host_tensor(torch.randn(n, k))
        biases = [host_tensor(torch.randn(n)), host_tensor(torch.randn(n))] if bias else []
        expected = getattr(reference, gated)(x, reference.linear_weight([gate, up], biases, True))
        weight, source = ops.linear_weight([gate, up], biases, True), activation(ops, x)
        actual = run(ops, lambda s=source, w=weight: getattr(ops, gated)(s, w), rows, inputs)
        assert_close(actual, expected, dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_row_does_not_depend_on_its_neighbours(level: str, dtype: str) -> None:
    torch.manual_seed(3)
    inputs = model_input()
    n, k = 200, 160
    x, w = torch.randn(131, k), host_tensor(torch.randn(n, k))
    results = {}
    for threads in (1, 2, 3):
        ops = cpu_ops(level, dtype, threads)
        weight = ops.linear_weight([w])
        for rows in (1, 2, 5, 12, 13, 16, 17, 31, 33, 131):
            source = activation(ops, x)
            actual = run(ops, lambda s=source, o=ops, w=weight: o.linear(s, w), rows, inputs)
            for row in (0, rows - 1):
                assert torch.equal(actual[row], results.setdefault(row, actual[row]))


@pytest.mark.parametrize("level", LEVELS)
def test_rows_too_long_for_a_cache(level: str) -> None:
    """Where many long rows do not fit a cache, k is cut into slices: the bits stay those of one row."""
    torch.manual_seed(5)
    ops, reference, inputs = cpu_ops(level, "bfloat16", threads=1), ReferenceOps("bfloat16"), model_input()
    rows, n, k = 131, 300, 4256
    x, part = torch.randn(rows, k).bfloat16().float(), host_tensor(torch.randn(n, k))
    weight, source = ops.linear_weight([part]), activation(ops, x)
    together = run(ops, lambda: ops.linear(source, weight), rows, inputs)
    assert_close(together, reference.linear(x, reference.linear_weight([part])), "float32")
    alone = run(ops, lambda: ops.linear(source, weight), 1, inputs)
    assert torch.equal(together[0], alone[0])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("stored", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("scale", [1.0, 25.298])
def test_embedding(level: str, dtype: str, stored: str, scale: float) -> None:
    torch.manual_seed(4)
    ops, reference, inputs = cpu_ops(level, dtype), ReferenceOps(dtype), model_input()
    table = host_tensor(torch.randn(77, 45), stored)
    inputs.token_ids[:20] = torch.randint(0, 77, (20,)).numpy()
    inputs.size.num_tokens = 20
    expected = reference.embedding(inputs, reference.linear_weight([table]), scale)
    weight = ops.linear_weight([table])
    assert torch.equal(run(ops, lambda: ops.embedding(inputs, weight, scale), 20, inputs), expected)
