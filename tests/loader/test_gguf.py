"""The GGUF reader: good files as the `gguf` package reads them, bad ones in one sentence."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from interleaf.errors import CorruptCheckpointError, InterleafError, UnsupportedModelError
from interleaf.host_tensor import BLOCK_TYPES
from interleaf.loader.gguf import read_gguf
from tests.loader.tiny import tiny_gguf

DTYPES = [*BLOCK_TYPES, "float32", "float16", "bfloat16"]


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


def info(name: bytes, sizes: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def write(
    path: Path,
    pairs: list[bytes] = [],  # noqa: B006
    infos: list[bytes] = [],  # noqa: B006
    data: bytes = b"",
    counts: tuple[int, int] | None = None,
    version: int = 3,
    magic: bytes = b"GGUF",
) -> Path:
    num_tensors, num_pairs = counts or (len(infos), len(pairs))
    head = magic + struct.pack("<IQQ", version, num_tensors, num_pairs) + b"".join(pairs) + b"".join(infos)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_as_the_gguf_package_reads_them(tmp_path: Path, dtype: str) -> None:
    import gguf

    tiny_gguf(tmp_path / "tiny.gguf", "qwen2", dtype)
    read = read_gguf(tmp_path / "tiny.gguf").tensors
    expected = {tensor.name: tensor for tensor in gguf.GGUFReader(str(tmp_path / "tiny.gguf")).tensors}
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].shape == tuple(int(size) for size in reversed(tensor.shape))
        assert read[name].data.tobytes() == np.ascontiguousarray(tensor.data).tobytes()


def test_metadata_of_every_type(tmp_path: Path) -> None:
    numbers = [("<B", 0, 200), ("<b", 1, -3), ("<H", 2, 60000), ("<h", 3, -300), ("<I", 4, 2**32 - 1)]
    numbers += [("<i", 5, -(2**31)), ("<Q", 10, 2**64 - 1), ("<q", 11, -(2**63))]
    pairs = [pair(f"n{kind}".encode(), kind, struct.pack(code, value)) for code, kind, value in numbers]
    pairs += [
        pair(b"f4", 6, struct.pack("<f", 0.5)),
        pair(b"f8", 12, struct.pack("<d", 0.1)),
        pair(b"yes", 7, b"\x01"),
        pair(b"text", 8, text("größe".encode())),
        pair(b"stray", 8, text(b"a\xff")),
        pair(b"ints", 9, array(5, 3, struct.pack("<3i", 1, -2, 3))),
        pair(b"flags", 9, array(7, 2, b"\x00\x02")),
        pair(b"words", 9, array(8, 2, text(b"one") + text(b""))),
        pair(b"nested", 9, array(9, 2, array(4, 1, struct.pack("<I", 7)) + array(8, 1, text(b"x")))),
        pair(b"none", 9, array(8, 0, b"")),
    ]
    metadata = read_gguf(write(tmp_path / "x.gguf", pairs)).metadata
    for _, kind, value in numbers:
        assert metadata[f"n{kind}"] == value and type(metadata[f"n{kind}"]) is int
    assert (metadata["f4"], metadata["f8"], metadata["yes"]) == (0.5, 0.1, True)
    assert (metadata["text"], metadata["stray"]) == ("größe", "a\ufffd")
    assert metadata["ints"].tolist() == [1, -2, 3]
    assert metadata["flags"].tolist() == [False, True]
    assert metadata["words"] == ["one", ""]
    assert metadata["nested"][0].tolist() == [7] and metadata["nested"][1] == ["x"]
    assert metadata["none"] == []


def test_version_2_and_another_alignment(tmp_path: Path) -> None:
    pairs = [pair(b"general.alignment", 4, struct.pack("<I", 8))]
    head = write(tmp_path / "x.gguf", pairs, [info(b"t", [2], 0, 8)], version=2).read_bytes().rstrip(b"\0")
    end = 24 + len(pairs[0]) + len(info(b"t", [2], 0, 8))
    (tmp_path / "x.gguf").write_bytes(head.ljust(-(-end // 8) * 8, b"\0") + bytes(8) + struct.pack("<2f", 1.0, 2.0))
    assert read_gguf(tmp_path / "x.gguf").tensors["t"].data.view("<f4").tolist() == [1.0, 2.0]


LONG = struct.pack("<Q", 2**63)
FOUR = struct.pack("<I", 4)
BROKEN: dict[str, tuple[dict[str, object], str]] = {
    "wrong magic": ({"magic": b"GGML"}, "does not begin with GGUF"),
    "more tensors than bytes": ({"counts": (2**60, 0)}, "cannot hold"),
    "more pairs than bytes": ({"counts": (0, 2**60)}, "cannot hold"),
    "fewer pairs than counted": ({"counts": (0, 2), "data": bytes(64)}, "twice"),
    "key that never ends": ({"pairs": [LONG + bytes(20)]}, "ends early"),
    "key that is not UTF-8": ({"pairs": [pair(b"\xff", 4, FOUR)]}, "not printable"),
    "key of two lines": ({"pairs": [pair(b"a\nb", 4, FOUR)]}, "not printable"),
    "key too long": ({"pairs": [pair(b"k" * 2000, 4, FOUR)]}, "too long"),
    "key twice": ({"pairs": [pair(b"k", 4, FOUR), pair(b"k", 4, FOUR)]}, "twice"),
    "unknown type": ({"pairs": [pair(b"k", 13, FOUR)]}, "unknown type"),
    "string that never ends": ({"pairs": [pair(b"k", 8, LONG + bytes(20))]}, "ends early"),
    "numbers that never end": ({"pairs": [pair(b"k", 9, array(4, 2**62, bytes(8)))]}, "ends early"),
    "strings that never end": ({"pairs": [pair(b"k", 9, array(8, 2**62, bytes(8)))]}, "cannot hold"),
    "string in an array too long": ({"pairs": [pair(b"k", 9, array(8, 1, LONG + bytes(8)))]}, "ends early"),
    "array of unknown type": ({"pairs": [pair(b"k", 9, array(99, 1, bytes(8)))]}, "unknown type"),
    "arrays in arrays": ({"pairs": [pair(b"k", 9, array(9, 1, b"") * 9)]}, "nested too deep"),
    "alignment 0": ({"pairs": [pair(b"general.alignment", 4, bytes(4))]}, "power of two"),
    "alignment 24": ({"pairs": [pair(b"general.alignment", 4, struct.pack("<I", 24))]}, "power of two"),
    "alignment as text": ({"pairs": [pair(b"general.alignment", 8, text(b"32"))]}, "power of two"),
    "tensor twice": ({"infos": [info(b"t", [8]), info(b"t", [8], 0, 32)], "data": bytes(64)}, "twice"),
    "too many dimensions": ({"infos": [info(b"t", [1] * 5)], "data": bytes(64)}, "5 dimensions"),
    "tensor behind the end": ({"infos": [info(b"t", [64])], "data": bytes(64)}, "ends before"),
    "sizes that overflow": ({"infos": [info(b"t", [2**63, 2**63])], "data": bytes(64)}, "ends before"),
    "offset that overflows": ({"infos": [info(b"t", [1], 0, 2**64 - 32)], "data": bytes(64)}, "ends before"),
    "offset off alignment": ({"infos": [info(b"t", [1], 0, 4)], "data": bytes(64)}, "alignment"),
    "overlap": ({"infos": [info(b"t", [16]), info(b"u", [8], 0, 32)], "data": bytes(96)}, "over another"),
    "part of a block": ({"infos": [info(b"t", [48], 8)], "data": bytes(96)}, "rows of 48"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_corrupt_files_are_refused(tmp_path: Path, case: str) -> None:
    parts, word = BROKEN[case]
    with pytest.raises(CorruptCheckpointError, match=word) as caught:
        read_gguf(write(tmp_path / "x.gguf", **parts))  # type: ignore[arg-type]
    assert "x.gguf" in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({"version": 1}, "version 1"),
        ({"version": 3 << 24}, "big endian"),
        ({"infos": [info(b"t", [256], 10)], "data": bytes(128)}, "type number 10"),
        ({"pairs": [pair(b"split.count", 2, b"\x02\x00")]}, "split"),
    ],
)
def test_what_is_not_implemented_is_named(tmp_path: Path, parts: dict[str, object], word: str) -> None:
    with pytest.raises(UnsupportedModelError, match=word):
        read_gguf(write(tmp_path / "x.gguf", **parts))  # type: ignore[arg-type]


def test_damaged_files_never_raise_anything_else(tmp_path: Path) -> None:
    from interleaf.frontend.tokenizer import load_tokenizer
    from interleaf.loader.checkpoint import open_checkpoint

    path = tmp_path / "tiny.gguf"
    tiny_gguf(path)
    good = path.read_bytes()
    head = good.index(b"blk.0.attn_norm.weight") + 2000
    rng = random.Random(0)
    for turn in range(400):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            # The first bytes hold the metadata that everything else hangs on.
            damaged[rng.randrange(1200 if turn % 2 else head)] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])
        path.write_bytes(bytes(damaged[: rng.randint(0, head)] if rng.random() < 0.2 else damaged))
        try:
            checkpoint = open_checkpoint(str(path))
            for name in checkpoint.tensors:
                assert checkpoint.tensors[name].num_values >= 0
            load_tokenizer(checkpoint)
        except InterleafError as error:
            assert len(str(error).splitlines()) == 1
