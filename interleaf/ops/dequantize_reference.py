"""GGUF's block-quantized types as float32, in numpy: the reference of csrc/dequantize.cpp.

Each function takes the blocks of one type, uint8 [blocks, bytes a block], and returns float32
[blocks, values a block]. d and m are half-precision scales and minima, q the stored integers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from interleaf.host_tensor import BLOCK_TYPES

F32 = np.float32
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def dequantize_f32(dtype: str, data: Bytes) -> Floats:
    """Decode whole blocks.

    Args:
        dtype: a name in `BLOCK_TYPES`.
        data: uint8 [n], a whole number of blocks.

    Returns: float32 [values].
    """
    return DECODERS[dtype](data.reshape(-1, BLOCK_TYPES[dtype][1])).reshape(-1)


def q8_0(blocks: Bytes) -> Floats:
    """q * d."""
    return blocks[:, 2:].view(np.int8).astype(F32) * _half(blocks, 0)


def q4_0(blocks: Bytes) -> Floats:
    """d * (q - 8)."""
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - F32(8))


def q4_1(blocks: Bytes) -> Floats:
    """d * q + m."""
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def q5_0(blocks: Bytes) -> Floats:
    """d * (q - 16)."""
    return _half(blocks, 0) * (_nibbles(blocks[:, 6:]) + _fifth_bits(blocks[:, 2:6]) - F32(16))


def q5_1(blocks: Bytes) -> Floats:
    """d * q + m."""
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) + _fifth_bits(blocks[:, 4:8])) + _half(blocks, 2)


def q4_k(blocks: Bytes) -> Floats:
    """(d * scale) * q - (dmin * min), in eight groups of 32."""
    scales, minima = _group_scales(blocks)
    q = _nibble_pairs(blocks[:, 16:])
    return _rows(scales * q.astype(F32) - minima)


def q5_k(blocks: Bytes) -> Floats:
    """As `q4_k`, group g taking its fifth bits from bit g of 32 bytes."""
    scales, minima = _group_scales(blocks)
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    q = _nibble_pairs(blocks[:, 48:]) | fifth << 4
    return _rows(scales * q.astype(F32) - minima)


def q6_k(blocks: Bytes) -> Floats:
    """(d * scale) * (q - 32), in sixteen groups of 16."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    q = (low.reshape(-1, 2, 4, 32) | high << 4).astype(F32) - F32(32)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(F32)
    return _rows(scales[:, :, None] * q.reshape(-1, 16, 16))


DECODERS: dict[str, Callable[[Bytes], Floats]] = {
    "q8_0": q8_0,
    "q4_0": q4_0,
    "q4_1": q4_1,
    "q5_0": q5_0,
    "q5_1": q5_1,
    "q4_k": q4_k,
    "q5_k": q5_k,
    "q6_k": q6_k,
}


def _rows(groups: Floats) -> Floats:
    """[blocks, groups, values a group] -> [blocks, 256]."""
    return groups.reshape(-1, 256)


def _half(blocks: Bytes, begin: int) -> Floats:
    """The half-precision number at byte `begin` of each block, float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, begin : begin + 2]).view("<f2").astype(F32)


def _nibbles(packed: Bytes) -> Floats:
    """uint8 [blocks, 16] -> float32 [blocks, 32]: all low nibbles, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(F32)


def _fifth_bits(packed: Bytes) -> Floats:
    """uint8 [blocks, 4] -> float32 [blocks, 32], each 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little").astype(F32) * F32(16)


def _nibble_pairs(packed: Bytes) -> Bytes:
    """uint8 [blocks, 128] -> [blocks, 8, 32]: each 32 bytes hold one group low and the next one high."""
    quarters = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([quarters & 15, quarters >> 4], axis=2).reshape(-1, 8, 32)


def _group_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima of the eight groups, float32 [blocks, 8, 1] each."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return (
        (_half(blocks, 0) * scales.astype(F32))[:, :, None],
        (_half(blocks, 2) * minima.astype(F32))[:, :, None],
    )
