"""A checkpoint's tensor as it lies in its file: bytes, a type name and a shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PLAIN_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes a value of the types that need no decoding."""

BLOCK_TYPES = {
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
}
"""GGUF's quantized types: values a block, bytes a block."""


@dataclass(frozen=True, slots=True)
class HostTensor:
    """One tensor of a checkpoint, usually a view into a memory-mapped file.

    Fields:
        dtype: "bfloat16", "float16", "float32" or a name in `BLOCK_TYPES`.
        shape: row-major, outermost first, as in a safetensors file: a linear weight is [out, in].
        data: its bytes, uint8 [n], contiguous, read-only.
    """

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray

    @property
    def num_values(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


def num_bytes(dtype: str, num_values: int) -> int:
    """Bytes that `num_values` values of `dtype` take in a file."""
    if dtype in PLAIN_BYTES:
        return PLAIN_BYTES[dtype] * num_values
    values, size = BLOCK_TYPES[dtype]
    return num_values // values * size


def round_to_bfloat16(value: float) -> float:
    """To nearest, ties to even; of finite values."""
    bits = int(np.float32(value).view(np.uint32))
    return float(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).view(np.float32))
