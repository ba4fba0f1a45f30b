"""A directory of uploaded files and of batches: their objects as JSON, the files' contents beside them."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from pathlib import Path
from typing import TypeVar

import msgspec

from interleaf.errors import ConfigError
from interleaf.server.clock import now
from interleaf.server.errors import ApiError
from interleaf.server.protocol.batches import BatchObject, FileObject

T = TypeVar("T", FileObject, BatchObject)

NAME = re.compile(r"(file|batch)-[0-9a-f]{32}")
MAX_NAME_CHARS = 255


class FileStore:
    """Keeps files and batches.

    Args:
        directory: None makes one that goes with the store.
    """

    def __init__(self, directory: Path | None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="interleaf-files-") if directory is None else None
        self._directory = Path(self._temporary.name) if self._temporary is not None else Path(directory or ".")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"The directory {str(directory)!r} cannot be used ({error.strerror}).") from None

    def close(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def new_path(self) -> tuple[str, Path]:
        """An id for a file, and where its contents belong."""
        name = f"file-{uuid.uuid4().hex}"
        return name, self.content_path(name)

    def content_path(self, file_id: str) -> Path:
        return self._directory / f"{file_id}.data"

    def add_file(self, file_id: str, filename: str, purpose: str, lifetime: int | None = None) -> FileObject:
        """Make known a file whose contents are there, for `lifetime` seconds or until it is deleted."""
        size = self.content_path(file_id).stat().st_size
        created = now()
        expires = None if lifetime is None else created + lifetime
        file = FileObject(file_id, size, created, filename[:MAX_NAME_CHARS], purpose, expires)
        self._write(file)
        return file

    def file(self, file_id: str, param: str = "file_id") -> FileObject:
        """
        Raises:
            ApiError: (404) there is no such file; `param` is the part of the request that named it.
        """
        file = self._read(file_id, "file", FileObject, param)
        if self._expired(file):
            raise _missing("file", file_id, param)
        return file

    def files(self) -> list[FileObject]:
        """All files, newest first."""
        return [file for file in self._all("file", FileObject) if not self._expired(file)]

    def delete_file(self, file_id: str) -> None:
        """
        Raises:
            ApiError: (404) there is no such file.
        """
        self.file(file_id)
        self._remove(file_id)

    def put_batch(self, batch: BatchObject) -> None:
        """Keep a batch, in place of the one of the same id."""
        self._write(batch)

    def batch(self, batch_id: str) -> BatchObject:
        """
        Raises:
            ApiError: (404) there is no such batch.
        """
        return self._read(batch_id, "batch", BatchObject, "batch_id")

    def batches(self) -> list[BatchObject]:
        """All batches, newest first."""
        return self._all("batch", BatchObject)

    def _expired(self, file: FileObject) -> bool:
        """Whether a file's time is over; it is removed then."""
        if file.expires_at is None or now() < file.expires_at:
            return False
        self._remove(file.id)
        return True

    def _remove(self, file_id: str) -> None:
        (self._directory / f"{file_id}.json").unlink(missing_ok=True)
        self.content_path(file_id).unlink(missing_ok=True)

    def _write(self, value: FileObject | BatchObject) -> None:
        path = self._directory / f"{value.id}.json"
        unfinished = path.with_suffix(".new")
        unfinished.write_bytes(msgspec.json.encode(value))
        os.replace(unfinished, path)

    def _read(self, name: str, kind: str, shape: type[T], param: str) -> T:
        if NAME.fullmatch(name) and name.startswith(kind + "-"):
            try:
                return msgspec.json.decode((self._directory / f"{name}.json").read_bytes(), type=shape)
            except FileNotFoundError:
                pass
        raise _missing(kind, name, param)

    def _all(self, kind: str, shape: type[T]) -> list[T]:
        names = [path.stem for path in self._directory.glob(f"{kind}-*.json")]
        return sorted(
            (self._read(name, kind, shape, "id") for name in names), key=lambda one: one.created_at, reverse=True
        )


def _missing(kind: str, name: str, param: str) -> ApiError:
    return ApiError(404, f"There is no {kind} {name[:200]!r} here.", param, "not_found")
