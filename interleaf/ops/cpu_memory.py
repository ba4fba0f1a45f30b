"""Memory of the native library: weights in large pieces, activations in an arena.

When the model drops its last reference to an activation, its memory serves the next one, so that the arena is as
large as the widest moment of the pass.
"""

from __future__ import annotations

import ctypes

import numpy as np

import interleaf._native as _native

ALIGNMENT = 64
VALUE_BYTES = {_native.DType.float32: 4, _native.DType.bfloat16: 2, _native.DType.int8: 1}


def address_of(array: np.ndarray) -> int:
    """Where the values of an array begin; they must outlive whoever is given this."""
    return int(array.ctypes.data)


def view(memory: _native.Memory, dtype: type[np.generic], count: int) -> np.ndarray:
    """The memory as an array; it lives as long as the caller keeps `memory`."""
    raw = (ctypes.c_char * memory.bytes).from_address(memory.address)
    return np.frombuffer(memoryview(raw), dtype, count)


class WeightStore:
    """Memory for weights, taken in large pieces, so that small weights too lie on huge pages."""

    PIECE_BYTES = 64 << 20

    def __init__(self) -> None:
        self._pieces: list[_native.Memory] = []
        self._end = self._limit = 0

    def take(self, num_bytes: int) -> int:
        """The address of so many bytes, which live as long as the store; 0 for none."""
        if not num_bytes:
            return 0
        if self._end + num_bytes > self._limit:
            piece = _native.Memory(max(num_bytes, self.PIECE_BYTES))
            self._pieces.append(piece)
            self._end, self._limit = piece.address, piece.address + piece.bytes
        address = self._end
        self._end += -(-num_bytes // ALIGNMENT) * ALIGNMENT
        return address


class Arena:
    """Memory for activations, reused as soon as nothing refers to them."""

    def __init__(self) -> None:
        self._owned: list[_native.Memory] = []
        self._free: list[_native.Memory] = []

    def take(self, num_bytes: int) -> _native.Memory:
        fitting = [memory for memory in self._free if memory.bytes >= num_bytes]
        if fitting:
            best = min(fitting, key=lambda memory: memory.bytes)
            self._free.remove(best)
            return best
        memory = _native.Memory(num_bytes)
        self._owned.append(memory)
        return memory

    def give_back(self, memory: _native.Memory) -> None:
        self._free.append(memory)

    @property
    def num_bytes(self) -> int:
        return sum(memory.bytes for memory in self._owned)


class Scratch:
    """Memory of the arena, which returns there with this object."""

    __slots__ = ("_arena", "memory")

    def __init__(self, arena: Arena, num_bytes: int) -> None:
        self._arena = arena
        self.memory = arena.take(num_bytes + ALIGNMENT)

    @property
    def address(self) -> int:
        return int(self.memory.address)

    def __del__(self) -> None:
        self._arena.give_back(self.memory)


class Buffer(Scratch):
    """One activation: rows of `width` values."""

    __slots__ = ("dtype", "rows", "width")

    def __init__(self, arena: Arena, rows: _native.Rows, max_rows: int, width: int, dtype: _native.DType) -> None:
        super().__init__(arena, max_rows * width * VALUE_BYTES[dtype])
        self.rows = rows
        self.width = width
        self.dtype = dtype
