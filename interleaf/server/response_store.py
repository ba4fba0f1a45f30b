"""Stored responses: the last ones in memory, or all of them in an SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from interleaf.errors import ConfigError

MAX_IN_MEMORY = 1000
MAX_BYTES_IN_MEMORY = 256 << 20


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response, the items of its input, and the conversation up to and with it."""

    id: str
    body: dict[str, Any]
    input_items: list[dict[str, Any]]
    messages: list[dict[str, Any]]


class ResponseStore(Protocol):
    """Where responses are kept."""

    async def put(self, response: StoredResponse) -> None:
        """Keep a response, in place of the one of the same id."""

    async def get(self, response_id: str) -> StoredResponse | None:
        """A response that was kept."""

    async def delete(self, response_id: str) -> bool:
        """Forget one; False if there is none."""

    async def close(self) -> None:
        """Let go of what it holds."""


def open_store(path: Path | None, max_count: int | None = None) -> ResponseStore:
    """The store that the options ask for.

    Args:
        max_count: how many an SQLite file keeps; None is all.

    Raises:
        ConfigError: the file cannot be used.
    """
    return MemoryStore() if path is None else SqliteStore(path, max_count)


class MemoryStore:
    """Keeps as many as its limits allow; the least recently used go first."""

    def __init__(self, max_count: int = MAX_IN_MEMORY, max_bytes: int = MAX_BYTES_IN_MEMORY) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._encoded: OrderedDict[str, bytes] = OrderedDict()
        self._num_bytes = 0

    async def put(self, response: StoredResponse) -> None:
        await self.delete(response.id)
        encoded = msgspec.json.encode(response)
        self._encoded[response.id] = encoded
        self._num_bytes += len(encoded)
        while self._encoded and (len(self._encoded) > self._max_count or self._num_bytes > self._max_bytes):
            self._num_bytes -= len(self._encoded.popitem(last=False)[1])

    async def get(self, response_id: str) -> StoredResponse | None:
        encoded = self._encoded.get(response_id)
        if encoded is None:
            return None
        self._encoded.move_to_end(response_id)
        return msgspec.json.decode(encoded, type=StoredResponse)

    async def delete(self, response_id: str) -> bool:
        encoded = self._encoded.pop(response_id, None)
        self._num_bytes -= len(encoded or b"")
        return encoded is not None

    async def close(self) -> None:
        self._encoded.clear()


class SqliteStore:
    """Keeps all of them, or the last `max_count`. Several processes may use the same file."""

    def __init__(self, path: Path, max_count: int | None = None) -> None:
        self._lock = threading.Lock()
        self._max_count = max_count
        try:
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS responses (id TEXT PRIMARY KEY, stored BLOB NOT NULL)")
        except sqlite3.Error as error:
            raise ConfigError(f"The response store {str(path)!r} cannot be used ({error}).") from None

    async def put(self, response: StoredResponse) -> None:
        encoded = msgspec.json.encode(response)
        await self._run("INSERT OR REPLACE INTO responses VALUES (?, ?)", response.id, encoded)
        if self._max_count is not None:
            oldest = "(SELECT max(rowid) FROM responses) - ?"
            await self._run(f"DELETE FROM responses WHERE rowid <= {oldest}", self._max_count)

    async def get(self, response_id: str) -> StoredResponse | None:
        rows = await self._run("SELECT stored FROM responses WHERE id = ?", response_id)
        return msgspec.json.decode(rows[0][0], type=StoredResponse) if rows else None

    async def delete(self, response_id: str) -> bool:
        return bool(await self._run("DELETE FROM responses WHERE id = ? RETURNING id", response_id))

    async def close(self) -> None:
        with self._lock:
            self._database.close()

    async def _run(self, statement: str, *values: str | bytes | int) -> list[Any]:
        return await asyncio.to_thread(self._run_locked, statement, values)

    def _run_locked(self, statement: str, values: tuple[str | bytes | int, ...]) -> list[Any]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()
