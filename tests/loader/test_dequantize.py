"""Block-quantized types: native code and reference against the `gguf` package, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from interleaf import _native
from interleaf.host_tensor import BLOCK_TYPES
from interleaf.ops.dequantize_reference import dequantize_f32


def native(dtype: str, data: np.ndarray) -> np.ndarray:
    values, size = BLOCK_TYPES[dtype]
    out = np.full(data.size // size * values, np.nan, np.float32)
    assert _native.dequantize_f32(dtype, data.ctypes.data, out.size, out.ctypes.data)
    return out


def package(dtype: str, blocks: np.ndarray) -> np.ndarray:
    import gguf

    kind = gguf.GGMLQuantizationType[dtype.upper()]
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.dequantize(blocks, kind)).reshape(-1)


@pytest.mark.parametrize("num_blocks", [1, 3, 257])
@pytest.mark.parametrize("dtype", BLOCK_TYPES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_any_bytes(dtype: str, num_blocks: int) -> None:
    blocks = np.random.default_rng(num_blocks).integers(0, 256, (num_blocks, BLOCK_TYPES[dtype][1]), dtype=np.uint8)
    expected = package(dtype, blocks)
    finite = np.isfinite(expected)
    for values in (native(dtype, blocks.reshape(-1)), dequantize_f32(dtype, blocks.reshape(-1))):
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(values[finite].view(np.uint32), expected[finite].view(np.uint32))


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_quantized_values(dtype: str) -> None:
    import gguf

    weights = np.random.default_rng(0).normal(0, 0.1, (5, 96)).astype(np.float32)
    blocks = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[dtype.upper()])
    values = native(dtype, np.ascontiguousarray(blocks).reshape(-1))
    np.testing.assert_array_equal(values, package(dtype, blocks))
    np.testing.assert_allclose(values.reshape(5, 96), weights, atol=0.05)


def test_every_half_precision_scale() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    blocks = np.ones((1 << 16, 34), np.uint8)
    blocks[:, :2] = halves.view(np.uint8).reshape(-1, 2)
    np.testing.assert_array_equal(native("q8_0", blocks.reshape(-1))[::32], halves.view(np.float16).astype(np.float32))


def test_source_off_alignment() -> None:
    block = np.random.default_rng(0).integers(0, 64, 33 * BLOCK_TYPES["q6_k"][1] + 1, dtype=np.uint8)
    np.testing.assert_array_equal(native("q6_k", block[1:]), native("q6_k", block[1:].copy()))


def test_unknown_type() -> None:
    assert not _native.dequantize_f32("q9_9", 0, 0, 0)
