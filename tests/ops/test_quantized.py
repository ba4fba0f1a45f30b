"""quantize, linear_quantized and embedding_quantized against the reference; GGUF types against their own decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

import interleaf._native as _native
from interleaf.host_tensor import BLOCK_TYPES, HostTensor
from interleaf.ops.cpu import CpuOps
from interleaf.ops.cpu_memory import WeightStore
from interleaf.ops.cpu_weights import WeightPacker
from interleaf.ops.dequantize_reference import dequantize_f32
from interleaf.ops.quantized_reference import round_activation, round_weight
from tests.loader.tiny import random_tensor
from tests.ops.native import LEVELS, activation, cpu_ops, host_tensor, model_input, run

FORMATS = {
    name.lower(): getattr(_native.Format, name) for name in ("INT8", "GROUP4", "GROUP4_MIN", "GROUP8", "GROUP8_MIN")
}
SHAPES = [(1, 32, 64), (3, 33, 32), (9, 70, 100), (16, 64, 576), (33, 40, 96), (70, 96, 130)]
"""rows, outputs, inputs."""


class OneFormat(WeightPacker):
    """Stores every weight in the format of this name."""

    def _format_of(self, sources: Sequence[HostTensor], head: bool) -> _native.Format | None:
        assert self.quantization is not None
        return FORMATS[self.quantization]


def quantized_ops(level: str, dtype: str, format: str, threads: int = 2) -> CpuOps:
    ops = cpu_ops(level, dtype, threads)
    ops._packer = OneFormat(ops.runtime, WeightStore(), ops.dtype, format)
    return ops


def close(actual: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    scale = max(float(np.abs(expected).max()), 1e-3)
    assert float(np.abs(actual.numpy() - expected).max()) / scale < tolerance


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_linear_quantized(level: str, format: str, dtype: str) -> None:
    torch.manual_seed(0)
    ops, inputs = quantized_ops(level, dtype, format), model_input()
    for rows, n, k in SHAPES:
        x = torch.randn(rows, k) * 3
        x = x.bfloat16().float() if dtype == "bfloat16" else x
        w, b = torch.randn(n, k), torch.randn(n)
        expected = (
            round_activation(x.numpy(), format) @ round_weight(w.numpy(), format).T.astype(np.float64) + b.numpy()
        )
        weight = ops.linear_weight([host_tensor(w, "float32")], [host_tensor(b, "float32")])
        source = activation(ops, x)
        close(run(ops, lambda s=source, w=weight: ops.linear(s, w), rows, inputs), expected, 3e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("format", FORMATS)
def test_linear_quantized_gated_and_added(level: str, format: str) -> None:
    torch.manual_seed(1)
    ops, inputs = quantized_ops(level, "float32", format), model_input()
    for rows, n, k in SHAPES:
        x, gate, up = torch.randn(rows, k), torch.randn(n, k) / k**0.5, torch.randn(n, k)
        rounded = round_activation(x.numpy(), format)
        gated = torch.from_numpy(rounded @ round_weight(gate.numpy(), format).T.astype(np.float64))
        expected = torch.nn.functional.silu(gated).numpy() * (rounded @ round_weight(up.numpy(), format).T)
        both = ops.linear_weight([host_tensor(gate, "float32"), host_tensor(up, "float32")], (), True)
        source = activation(ops, x)
        close(run(ops, lambda s=source, w=both: ops.linear_silu_mul(s, w), rows, inputs), expected, 1e-4)
        residual = torch.randn(rows, n)
        weight, target = ops.linear_weight([host_tensor(up, "float32")]), activation(ops, residual)
        expected = residual.numpy() + rounded @ round_weight(up.numpy(), format).T
        close(run(ops, lambda s=source, w=weight, t=target: ops.linear_add(s, w, t), rows, inputs), expected, 3e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_its_neighbours(level: str, format: str) -> None:
    torch.manual_seed(2)
    x, w = torch.randn(70, 160), host_tensor(torch.randn(100, 160))
    inputs, results = model_input(), {}
    for threads in (1, 2):
        ops = quantized_ops(level, "bfloat16", format, threads)
        weight = ops.linear_weight([w])
        for rows in (1, 2, 7, 8, 9, 17, 33, 70):
            source = activation(ops, x)
            actual = run(ops, lambda s=source, o=ops, w=weight: o.linear(s, w), rows, inputs)
            for row in (0, rows - 1):
                assert torch.equal(actual[row], results.setdefault(row, actual[row]))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_sums_hold_the_largest_values(level: str, format: str, sign: float) -> None:
    """All activations and weights at the ends of their ranges: no level may overflow in between."""
    ops, inputs = quantized_ops(level, "float32", format), model_input()
    rows, n, k = 13, 40, 100
    x, w = torch.full((rows, k), 3.0), torch.full((n, k), 0.5 * sign)
    w[:, ::32] = -0.5 * sign
    expected = round_activation(x.numpy(), format) @ round_weight(w.numpy(), format).T.astype(np.float64)
    weight, source = ops.linear_weight([host_tensor(w, "float32")]), activation(ops, x)
    close(run(ops, lambda: ops.linear(source, weight), rows, inputs), expected, 3e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("format", FORMATS)
def test_embedding_quantized(level: str, format: str) -> None:
    torch.manual_seed(3)
    ops, inputs = quantized_ops(level, "float32", format), model_input()
    table = torch.randn(77, 70)
    inputs.token_ids[:20] = torch.randint(0, 77, (20,)).numpy()
    weight = ops.linear_weight([host_tensor(table, "float32")])
    expected = round_weight(table.numpy(), format)[inputs.token_ids[:20]] * np.float32(1.7)
    close(run(ops, lambda: ops.embedding(inputs, weight, 1.7), 20, inputs), expected, 1e-6)


@pytest.mark.parametrize("dtype", BLOCK_TYPES)
def test_gguf_types_keep_their_values(dtype: str) -> None:
    """Every type but Q6_K (whose groups are smaller) is repacked exactly, up to float16 scales of the K types."""
    n, k = 40, 512
    rng = np.random.default_rng(4)
    raw = np.ascontiguousarray(random_tensor(rng, dtype, (n, k))).reshape(-1)
    ops, inputs = cpu_ops(LEVELS[-1], "float32").for_another_model("gguf"), model_input()
    weight = ops.linear_weight([HostTensor(dtype, (n, k), raw)])
    inputs.token_ids[:n] = np.arange(n)
    actual = run(ops, lambda: ops.embedding(inputs, weight), n, inputs)
    expected = dequantize_f32(dtype, raw).reshape(n, k)
    tolerance = {"q4_k": 2e-3, "q5_k": 2e-3, "q6_k": 8e-3}.get(dtype, 1e-6)
    close(actual, expected, tolerance)


def test_activations_that_are_not_numbers_stay_in_their_row() -> None:
    ops, inputs = quantized_ops(LEVELS[-1], "float32", "group4_min"), model_input()
    x = torch.randn(3, 64)
    x[1, 5], x[1, 6] = float("nan"), float("inf")
    weight = ops.linear_weight([host_tensor(torch.randn(32, 64))])
    source = activation(ops, x)
    whole = run(ops, lambda: ops.linear(source, weight), 3, inputs)
    assert torch.isfinite(whole[[0, 2]]).all()
