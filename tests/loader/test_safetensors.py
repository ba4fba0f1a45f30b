"""The safetensors reader: good files bit for bit, bad ones in one sentence."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interleaf.errors import CheckpointNotFoundError, CorruptCheckpointError, InterleafError, UnsupportedModelError
from interleaf.loader.safetensors import INDEX_FILE, read_directory, read_safetensors
from tests.loader.tiny import write_safetensors


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"a": entry("F32", [2, 2], 0, 16), "b": entry("BF16", [3], 16, 22), "c": entry("F16", [0], 22, 22)}
DATA = bytes(range(22))


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {
        "float": torch.randn(5, 7),
        "half": torch.randn(3).half(),
        "brain": torch.randn(2, 3, 4).bfloat16(),
        "scalar": torch.tensor(1.5),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    read = read_safetensors(tmp_path / "model.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].shape == tuple(tensor.shape)
        assert f"torch.{read[name].dtype}" == str(tensor.dtype)
        assert read[name].data.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert not read[name].data.flags.writeable


def test_tensors_are_views_into_the_file(tmp_path: Path) -> None:
    tensors = read_safetensors(write_safetensors(tmp_path / "x.safetensors", GOOD, DATA))
    assert tensors["b"].data.base is not None
    assert np.shares_memory(tensors["a"].data, tensors["a"].data.base)
    assert tensors["c"].num_values == 0


BROKEN: dict[str, tuple[dict[str, Any] | bytes, bytes, str]] = {
    "not JSON": (b"{nonsense", DATA, "malformed"),
    "not UTF-8": (b'{"\xff": 1}', DATA, "malformed"),
    "deep nesting": (b"[" * 200_000, DATA, "malformed"),
    "not an object": (b"[]", DATA, "not an object"),
    "a name twice": (b'{"a": {}, "a": {}}', b"", "twice"),
    "entry of a wrong kind": ({"a": 3}, b"", "lacks"),
    "entry without offsets": ({"a": {"dtype": "F32", "shape": [1]}}, b"", "lacks"),
    "metadata of a wrong kind": ({"__metadata__": 3}, b"", "__metadata__"),
    "dtype of a wrong kind": ({"a": entry(["F32"], [1], 0, 4)}, b"1234", "dtype"),  # type: ignore[arg-type]
    "name of two lines": ({"a\nb": 3}, b"", "not printable"),
    "negative size": ({"a": entry("F32", [-1], 0, 4)}, b"1234", "shape"),
    "size that is no integer": ({"a": entry("F32", [1.0], 0, 4)}, b"1234", "shape"),  # type: ignore[list-item]
    "size that is true": ({"a": entry("F32", [True], 0, 4)}, b"1234", "shape"),
    "too many dimensions": ({"a": entry("F32", [1] * 50, 0, 4)}, b"1234", "shape"),
    "sizes that overflow": ({"a": entry("F32", [2**62, 2**62, 4], 0, 4)}, b"1234", "contradict"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, b"1234", "positions"),
    "negative offset": ({"a": entry("F32", [1], -4, 0)}, b"1234", "positions"),
    "offsets reversed": ({"a": entry("F32", [1], 4, 0)}, b"1234", "lies at"),
    "offset behind the end": ({"a": entry("F32", [2], 0, 8)}, b"1234", "lies at"),
    "wrong size": ({"a": entry("F32", [2], 0, 4)}, b"1234", "contradict"),
    "overlap": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, bytes(8), "overlaps"),
    "hole": ({"a": entry("F32", [1], 4, 8)}, bytes(8), "hole"),
    "bytes behind the last tensor": ({"a": entry("F32", [1], 0, 4)}, bytes(8), "goes on"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_corrupt_files_are_refused(tmp_path: Path, case: str) -> None:
    header, data, word = BROKEN[case]
    with pytest.raises(CorruptCheckpointError, match=word) as caught:
        read_safetensors(write_safetensors(tmp_path / "x.safetensors", header, data))
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize("dtype", ["F64", "I64", "F8_E4M3", "U8", "nonsense"])
def test_unknown_dtypes_are_named(tmp_path: Path, dtype: str) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {"weight": entry(dtype, [1], 0, 8)}, bytes(8))
    with pytest.raises(UnsupportedModelError, match=f"weight.*{dtype}"):
        read_safetensors(path)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, (100).to_bytes(8, "little") + b"{}"])
def test_files_too_short_for_their_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CorruptCheckpointError):
        read_safetensors(tmp_path / "x.safetensors")


def test_damaged_files_never_raise_anything_else(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", GOOD, DATA)
    good = path.read_bytes()
    rng = random.Random(0)
    for _ in range(1500):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(bytes(damaged[: rng.randint(0, len(damaged))] if rng.random() < 0.3 else damaged))
        try:
            read_safetensors(path)
        except InterleafError as error:
            assert len(str(error).splitlines()) == 1


def write_shards(directory: Path, weight_map: Any) -> Path:
    write_safetensors(directory / "one.safetensors", {"a": entry("F32", [1], 0, 4)}, bytes(4))
    write_safetensors(directory / "two.safetensors", {"b": entry("F32", [2], 0, 8)}, bytes(8))
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def test_shards_are_joined(tmp_path: Path) -> None:
    tensors = read_directory(write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"a": (1,), "b": (2,)}


@pytest.mark.parametrize(
    ("weight_map", "error", "word"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, CheckpointNotFoundError, "three.safetensors"),
        ({"a": "two.safetensors"}, CorruptCheckpointError, "lacks"),
        ({"a": "../one.safetensors"}, CorruptCheckpointError, "plain file name"),
        ({"a": "/etc/one.safetensors"}, CorruptCheckpointError, "plain file name"),
        ({"a": "..\\one.safetensors"}, CorruptCheckpointError, "plain file name"),
        ({"a": "one.bin"}, CorruptCheckpointError, "plain file name"),
        ({"a": 3}, CorruptCheckpointError, "plain file name"),
        ({}, CorruptCheckpointError, "weight_map"),
        ("one.safetensors", CorruptCheckpointError, "weight_map"),
    ],
)
def test_bad_indexes_are_refused(tmp_path: Path, weight_map: Any, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        read_directory(write_shards(tmp_path, weight_map))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    write_safetensors(tmp_path / "two.safetensors", {"a": entry("F32", [2], 0, 8)}, bytes(8))
    with pytest.raises(CorruptCheckpointError, match="two shards"):
        read_directory(tmp_path)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UnsupportedModelError, match="never opened"):
        read_directory(tmp_path)


def test_a_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        read_directory(tmp_path)
