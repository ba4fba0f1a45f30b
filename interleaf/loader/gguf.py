"""GGUF files, versions 2 and 3, little endian: metadata, a table of tensors, then their bytes.

    "GGUF"  u32 version  u64 tensors  u64 pairs
    pairs   x (string key, u32 type, value)
    tensors x (string name, u32 dimensions, u64 sizes[dimensions] innermost first, u32 type, u64 offset)
    padding to the alignment, data

A string is a u64 length and its bytes; an array is a u32 type, a u64 count and its values. Every
length and count is compared with the bytes that are left before anything is allocated for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interleaf.errors import CorruptCheckpointError, UnsupportedModelError
from interleaf.host_tensor import BLOCK_TYPES, HostTensor, num_bytes
from interleaf.loader.mapped import map_file

TENSOR_TYPES = {
    0: "float32",
    1: "float16",
    2: "q4_0",
    3: "q4_1",
    6: "q5_0",
    7: "q5_1",
    8: "q8_0",
    12: "q4_k",
    13: "q5_k",
    14: "q6_k",
    30: "bfloat16",
}
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
BOOL, STRING, ARRAY = 7, 8, 9
MAGIC = int.from_bytes(b"GGUF", "little")
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 1024
MAX_ARRAY_DEPTH = 4
MAX_STRINGS = 1 << 22
MIN_PAIR_BYTES = 13
MIN_TENSOR_BYTES = 24

_unpack_u32 = struct.Struct("<I").unpack_from
_unpack_u64 = struct.Struct("<Q").unpack_from


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file holds.

    Fields:
        metadata: key -> int, float, bool, str, list (of strings or of arrays) or a read-only numpy
            array (of numbers).
        tensors: GGUF name -> tensor, views into the mapped file, sizes outermost first.
    """

    metadata: dict[str, Any]
    tensors: dict[str, HostTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read a GGUF file's metadata and its table of tensors.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CorruptCheckpointError: the file contradicts itself or ends too early.
        UnsupportedModelError: its version, byte order or one of its tensor types is not implemented.
    """
    content = map_file(path)
    reader = _Reader(path.name, content)
    num_tensors, num_pairs = _read_counts(reader)
    metadata: dict[str, Any] = {}
    for _ in range(num_pairs):
        key = reader.string()
        if key in metadata:
            raise reader.corrupt(f"has the key {key!r} twice")
        metadata[key] = reader.value(reader.u32())
    if metadata.get("split.count", 0) not in (0, 1):
        raise UnsupportedModelError(f"{path.name} is one part of a split model: merge the parts into one file.")
    infos = _read_tensor_infos(reader, num_tensors)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise reader.corrupt(f"has the alignment {alignment!r}, which is not a power of two")
    data = content[-(-reader.position // alignment) * alignment :]
    return GgufFile(metadata, _place_tensors(reader, infos, data, alignment))


class _Reader:
    """A position in a GGUF file that never leaves it."""

    def __init__(self, file_name: str, content: np.ndarray) -> None:
        self.file_name = file_name
        self.content = content
        self.buffer = content.data
        self.size = len(content)
        self.position = 0

    def corrupt(self, fault: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{self.file_name} {fault}: fetch it again.")

    def take(self, count: int) -> int:
        """Step over `count` bytes and return where they began."""
        begin = self.position
        if count > self.size - begin:
            raise self.corrupt(f"ends early: {count} bytes are missing behind byte {begin}")
        self.position = begin + count
        return begin

    def u32(self) -> int:
        return int(_unpack_u32(self.buffer, self.take(4))[0])

    def u64(self) -> int:
        return int(_unpack_u64(self.buffer, self.take(8))[0])

    def string(self) -> str:
        """A key or a name, which must be fit to be shown in a message."""
        length = self.u64()
        begin = self.take(length)
        name = str(self.buffer[begin : begin + min(length, MAX_NAME_BYTES)], "utf-8", "replace")
        if length > MAX_NAME_BYTES or "\ufffd" in name or not name.isprintable():
            raise self.corrupt("has a name that is too long or not printable")
        return name

    def text(self) -> str:
        """A value, in which a stray byte is no reason to refuse the file."""
        length = self.u64()
        begin = self.take(length)
        return str(self.buffer[begin : begin + length], "utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self.numbers(kind, 1)[0].item()
        if kind == STRING:
            return self.text()
        if kind == ARRAY and depth < MAX_ARRAY_DEPTH:
            return self.array(self.u32(), self.u64(), depth + 1)
        raise self.corrupt(f"has a metadata value of the unknown type {kind}, or arrays nested too deep")

    def numbers(self, kind: int, count: int) -> np.ndarray:
        dtype = SCALARS[kind]
        begin = self.take(count * dtype.itemsize)
        raw = self.content[begin : self.position]
        return raw != 0 if kind == BOOL else raw.view(dtype)

    def array(self, kind: int, count: int, depth: int) -> Any:
        if kind in SCALARS:
            return self.numbers(kind, count)
        if count > min((self.size - self.position) // 8, MAX_STRINGS):
            raise self.corrupt(f"claims an array of {count} values, which it cannot hold")
        if kind == STRING:
            return self.strings(count)
        return [self.value(kind, depth) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """An array of strings. Written flat: a vocabulary has 10^5 of them and start-up waits."""
        buffer, position, last = self.buffer, self.position, self.size - 8
        result = []
        for _ in range(count):
            if position > last:
                break
            begin = position + 8
            position = begin + _unpack_u64(buffer, position)[0]
            result.append(str(buffer[begin:position], "utf-8", "replace"))
        if len(result) < count or position > self.size:
            raise self.corrupt("ends early, inside an array of strings")
        self.position = position
        return result


def _read_counts(reader: _Reader) -> tuple[int, int]:
    """Check magic and version; return the numbers of tensors and of metadata pairs."""
    if reader.u32() != MAGIC:
        raise CorruptCheckpointError(f"{reader.file_name} is not a GGUF file: it does not begin with GGUF.")
    version = reader.u32()
    if version not in (2, 3):
        kind = "big endian" if version & 0xFFFF == 0 else f"version {version}"
        raise UnsupportedModelError(
            f"{reader.file_name} is GGUF of {kind}: only little-endian versions 2 and 3 can be read."
        )
    num_tensors, num_pairs = reader.u64(), reader.u64()
    left = reader.size - reader.position
    if num_tensors > left // MIN_TENSOR_BYTES or num_pairs > left // MIN_PAIR_BYTES:
        raise reader.corrupt(f"claims {num_tensors} tensors and {num_pairs} metadata pairs, which it cannot hold")
    return num_tensors, num_pairs


def _read_tensor_infos(reader: _Reader, count: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Return name -> (dtype, shape outermost first, offset in the data)."""
    infos: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for _ in range(count):
        name = reader.string()
        if name in infos:
            raise reader.corrupt(f"has the tensor {name} twice")
        num_dimensions = reader.u32()
        if num_dimensions > MAX_DIMENSIONS:
            raise reader.corrupt(f"gives the tensor {name} {num_dimensions} dimensions")
        sizes = [reader.u64() for _ in range(num_dimensions)]
        kind = reader.u32()
        if kind not in TENSOR_TYPES:
            raise UnsupportedModelError(
                f"Tensor {name} in {reader.file_name} has the GGUF type number {kind}: "
                f"only {', '.join(TENSOR_TYPES.values())} can be loaded."
            )
        infos[name] = TENSOR_TYPES[kind], tuple(reversed(sizes)), reader.u64()
    return infos


def _place_tensors(
    reader: _Reader, infos: dict[str, tuple[str, tuple[int, ...], int]], data: np.ndarray, alignment: int
) -> dict[str, HostTensor]:
    """Cut each tensor's bytes out of `data` once its size, place and neighbours make sense."""
    tensors = {}
    previous_end = 0
    for name, (dtype, shape, offset) in sorted(infos.items(), key=lambda item: item[1][2]):
        row = shape[-1] if shape else 1
        if dtype in BLOCK_TYPES and row % BLOCK_TYPES[dtype][0]:
            raise reader.corrupt(f"gives the tensor {name} rows of {row} values, which {dtype} cannot hold")
        count = 1
        for size in shape:
            count *= size
        end = offset + num_bytes(dtype, count)
        if end > len(data):
            raise reader.corrupt(f"ends before its tensor {name} does")
        if offset % alignment:
            raise reader.corrupt(f"places its tensor {name} off the alignment of {alignment} bytes")
        if offset < previous_end:
            raise reader.corrupt(f"places its tensor {name} over another one")
        previous_end = end
        tensors[name] = HostTensor(dtype, shape, data[offset:end])
    return tensors
