"""Safetensors files: 8 bytes of header length, a JSON header, then the tensors' bytes.

Nothing is trusted: lengths, offsets, shapes and names are checked before any of them is used, so
that a truncated or hostile file ends in one clear sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interleaf.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsupportedModelError
from interleaf.host_tensor import HostTensor, num_bytes
from interleaf.loader.mapped import map_file

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8
MAX_NAME_CHARS = 1024


def read_safetensors(path: Path) -> dict[str, HostTensor]:
    """Read one file's header and return its tensors as views into the mapped file.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CorruptCheckpointError: the file contradicts itself.
        UnsupportedModelError: a tensor has a type that nothing here computes with.
    """
    content = map_file(path)
    if len(content) < 8:
        raise CorruptCheckpointError(f"{path.name} is too short to be a safetensors file: fetch it again.")
    header_length = int.from_bytes(content[:8].tobytes(), "little")
    if header_length > min(len(content) - 8, MAX_HEADER_BYTES):
        raise CorruptCheckpointError(
            f"{path.name} claims a header of {header_length} bytes, which it cannot hold: fetch it again."
        )
    header = _parse_header(path.name, content[8 : 8 + header_length].tobytes())
    data = content[8 + header_length :]
    tensors = {}
    spans = []
    for name, entry in header.items():
        dtype, shape, begin, end = _check_entry(path.name, name, entry, len(data))
        tensors[name] = HostTensor(dtype, shape, data[begin:end])
        spans.append((begin, end, name))
    _check_spans(path.name, spans, len(data))
    return tensors


def read_directory(directory: Path) -> dict[str, HostTensor]:
    """Read all tensors of a directory: one file, or the shards that its index names.

    Raises:
        CheckpointNotFoundError: it holds no safetensors file, or a shard is missing.
        CorruptCheckpointError: the index and the shards contradict each other, or a file is broken.
    """
    if (directory / INDEX_FILE).is_file():
        return _read_shards(directory)
    if (directory / SINGLE_FILE).is_file():
        return read_safetensors(directory / SINGLE_FILE)
    others = sorted(directory.glob("*.safetensors"))
    if len(others) == 1:
        return read_safetensors(others[0])
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")) or any(directory.glob("*.pth")):
        raise UnsupportedModelError(
            f"{directory} has its weights only as pickles, which are never opened: convert them to safetensors."
        )
    raise CheckpointNotFoundError(
        f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}: give a directory that holds a model's weights."
    )


def _read_shards(directory: Path) -> dict[str, HostTensor]:
    weight_map = _read_weight_map(directory / INDEX_FILE)
    tensors: dict[str, HostTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if not (directory / shard).is_file():
            raise CheckpointNotFoundError(
                f"{INDEX_FILE} names {shard}, which is missing from {directory}: fetch the model again."
            )
        held = read_safetensors(directory / shard)
        twice = tensors.keys() & held.keys()
        if twice:
            raise CorruptCheckpointError(f"Tensor {min(twice)} is in two shards, the second being {shard}.")
        tensors.update(held)
        lost = [name for name, file in weight_map.items() if file == shard and name not in held]
        if lost:
            raise CorruptCheckpointError(f"{INDEX_FILE} places tensor {lost[0]} in {shard}, which lacks it.")
    return tensors


def _read_weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name, every file name being a plain name in the index's own directory."""
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise CorruptCheckpointError(f"{path.name} is larger than {MAX_HEADER_BYTES} bytes.")
    index = _parse_json(path.name, path.read_bytes())
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpointError(f"{path.name} has no weight_map that names the shards.")
    for shard in weight_map.values():
        if not _is_plain_file_name(shard):
            raise CorruptCheckpointError(f"{path.name} names the shard {shard!r}, which is not a plain file name.")
    return weight_map


def _is_plain_file_name(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and len(name) < 256
        and not any(mark in name for mark in ("/", "\\", "\0"))
    )


def _parse_header(file_name: str, raw: bytes) -> dict[str, Any]:
    header = _parse_json(file_name, raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CorruptCheckpointError(f"The __metadata__ of {file_name} is not a JSON object.")
    return header


def _parse_json(file_name: str, raw: bytes) -> dict[str, Any]:
    """Parse a JSON object in which no name occurs twice, at any depth."""

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in pairs:
            if name in result:
                raise CorruptCheckpointError(f"The JSON in {file_name} has the name {name!r} twice.")
            result[name] = value
        return result

    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except CorruptCheckpointError:
        raise
    except (ValueError, RecursionError):
        raise CorruptCheckpointError(f"The JSON in {file_name} is malformed: fetch the file again.") from None
    if not isinstance(parsed, dict):
        raise CorruptCheckpointError(f"The JSON in {file_name} is not an object.")
    return parsed


def _check_entry(file_name: str, name: str, entry: Any, data_length: int) -> tuple[str, tuple[int, ...], int, int]:
    """Return (dtype, shape, begin, end) of one header entry."""
    if len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise CorruptCheckpointError(f"{file_name} has a tensor whose name is too long or not printable.")
    where = f"Tensor {name} in {file_name}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CorruptCheckpointError(f"{where} lacks its dtype, shape or data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise CorruptCheckpointError(f"{where} has a dtype that is not a string.")
    if dtype not in DTYPES:
        raise UnsupportedModelError(f"{where} has the dtype {dtype}: only {', '.join(DTYPES)} can be loaded.")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise CorruptCheckpointError(f"{where} has a shape that is not a list of sizes.")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CorruptCheckpointError(f"{where} has data_offsets that are not two positions.")
    begin, end = offsets
    if not begin <= end <= data_length:
        raise CorruptCheckpointError(f"{where} lies at bytes {begin} to {end} of {data_length}: fetch the file again.")
    count = 1
    for size in shape:
        count *= size
    if num_bytes(DTYPES[dtype], count) != end - begin:
        raise CorruptCheckpointError(f"{where} has {end - begin} bytes, which its shape and dtype contradict.")
    return DTYPES[dtype], tuple(shape), begin, end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_spans(file_name: str, spans: list[tuple[int, int, str]], data_length: int) -> None:
    """The format wants the tensors to cover the data exactly: no overlap, no hole, nothing behind."""
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            fault = "overlaps another" if begin < position else "leaves a hole before it"
            raise CorruptCheckpointError(f"Tensor {name} in {file_name} {fault}: fetch the file again.")
        position = end
    if position != data_length:
        raise CorruptCheckpointError(f"{file_name} goes on for {data_length - position} bytes behind its last tensor.")
