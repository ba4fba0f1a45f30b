from __future__ import annotations

import pytest
import torch

from interleaf import _native
from interleaf.ops.reference import ReferenceOps
from tests.ops.native import LEVELS, activation, assert_close, cpu_ops, host_tensor, model_input, run


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rms_norm(level: str, dtype: str) -> None:
    torch.manual_seed(0)
    ops, reference, inputs = cpu_ops(level, dtype), ReferenceOps(dtype), model_input()
    for rows, width in [(1, 16), (3, 37), (9, 576), (64, 15)]:
        x, weight = torch.randn(rows, width) * 5, host_tensor(torch.randn(width), "float32")
        expected = reference.rms_norm(x, reference.vector(weight), 1e-5)
        source, vector = activation(ops, x, _native.DType.float32), ops.vector(weight)
        actual = run(ops, lambda s=source, v=vector: ops.rms_norm(s, v, 1e-5), rows, inputs)
        assert_close(actual, expected, dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rms_norm_exact(level: str, dtype: str) -> None:
    torch.manual_seed(1)
    ops, reference, inputs = cpu_ops(level, dtype), ReferenceOps(dtype), model_input()
    x, weight = torch.randn(30, 50), host_tensor(torch.randn(50), "float32")
    expected = reference.rms_norm(x, reference.vector(weight), 1e-6, exact=True)
    source, vector = activation(ops, x, _native.DType.float32), ops.vector(weight)
    actual = run(ops, lambda: ops.rms_norm(source, vector, 1e-6, exact=True), 30, inputs)
    assert_close(actual, expected, "float32")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rms_norm_add(level: str, dtype: str) -> None:
    torch.manual_seed(2)
    ops, reference, inputs = cpu_ops(level, dtype), ReferenceOps(dtype), model_input()
    for rows, width in [(1, 16), (3, 37), (9, 640), (64, 15)]:
        x, residual, weight = torch.randn(rows, width) * 5, torch.randn(rows, width), host_tensor(torch.randn(width))
        expected = reference.rms_norm_add(x, reference.vector(weight, 1.0), 1e-5, residual.clone())
        source, target = (activation(ops, values, _native.DType.float32) for values in (x, residual))
        vector = ops.vector(weight, 1.0)
        actual = run(ops, lambda s=source, v=vector, t=target: ops.rms_norm_add(s, v, 1e-5, t), rows, inputs)
        assert_close(actual, expected, "float32")


@pytest.mark.parametrize("level", LEVELS)
def test_soft_cap(level: str) -> None:
    torch.manual_seed(3)
    ops, reference, inputs = cpu_ops(level, "float32"), ReferenceOps("float32"), model_input()
    for rows, width in [(1, 3), (3, 37), (5, 640)]:
        x = torch.randn(rows, width) * 30
        source = activation(ops, x, _native.DType.float32)
        actual = run(ops, lambda s=source: ops.soft_cap(s, 20.0), rows, inputs)
        assert_close(actual, reference.soft_cap(x.clone(), 20.0), "float32")
