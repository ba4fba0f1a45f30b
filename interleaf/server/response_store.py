"""Stored responses and chats: the last ones in memory, or all of them in an SQLite file."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from interleaf.errors import ConfigError

MAX_IN_MEMORY = 1000
MAX_BYTES_IN_MEMORY = 256 << 20
PAGE_ROWS = 100
"""Rows of a file that are read at a time when it is searched."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response, the items of its input, and the conversation up to and with it."""

    id: str
    body: dict[str, Any]
    input_items: list[dict[str, Any]]
    messages: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class StoredChat:
    """A chat completion with what is told again of its request, the messages it answers, and its client's notes."""

    id: str
    body: dict[str, Any]
    messages: list[dict[str, Any]]
    metadata: dict[str, str] = field(default_factory=dict)


T = TypeVar("T", StoredResponse, StoredChat)
TABLES: dict[type[Any], str] = {StoredResponse: "responses", StoredChat: "chat_completions"}


class Store(Protocol[T]):
    """Where objects of one kind are kept."""

    async def put(self, value: T) -> None:
        """Keep an object, in place of the one of the same id."""

    async def get(self, name: str) -> T | None:
        """An object that was kept."""

    async def delete(self, name: str) -> bool:
        """Forget one; False if there is none."""

    async def page(
        self, wanted: Callable[[T], bool], after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[T], bool]:
        """At most `limit` objects that are wanted, in the order in which they were first kept.

        Args:
            after: id of the object behind which they stand; one that is not there is the beginning.

        Returns:
            The objects, and whether there are more.
        """

    async def close(self) -> None:
        """Let go of what it holds."""


def open_store(kind: type[T], path: Path | None, max_count: int | None = None) -> Store[T]:
    """The store that the options ask for.

    Args:
        max_count: how many an SQLite file keeps; None is all.

    Raises:
        ConfigError: the file cannot be used.
    """
    return MemoryStore(kind) if path is None else SqliteStore(kind, path, max_count)


class MemoryStore(Store[T]):
    """Keeps as many as its limits allow; the least recently used go first."""

    def __init__(self, kind: type[T], max_count: int = MAX_IN_MEMORY, max_bytes: int = MAX_BYTES_IN_MEMORY) -> None:
        self._kind: type[T] = kind
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._encoded: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        """By id: a number that grows, and the object."""
        self._numbers = itertools.count()
        self._num_bytes = 0

    async def put(self, value: T) -> None:
        number, old = self._encoded.pop(value.id, (next(self._numbers), b""))
        encoded = msgspec.json.encode(value)
        self._encoded[value.id] = number, encoded
        self._num_bytes += len(encoded) - len(old)
        while self._encoded and (len(self._encoded) > self._max_count or self._num_bytes > self._max_bytes):
            self._num_bytes -= len(self._encoded.popitem(last=False)[1][1])

    async def get(self, name: str) -> T | None:
        if name not in self._encoded:
            return None
        self._encoded.move_to_end(name)
        found: T = msgspec.json.decode(self._encoded[name][1], type=self._kind)
        return found

    async def delete(self, name: str) -> bool:
        _, encoded = self._encoded.pop(name, (0, b""))
        self._num_bytes -= len(encoded)
        return bool(encoded)

    async def page(
        self, wanted: Callable[[T], bool], after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[T], bool]:
        ordered = sorted(self._encoded.items(), key=lambda entry: entry[1][0], reverse=newest_first)
        names = [name for name, _ in ordered]
        begin = names.index(after) + 1 if after in names else 0
        return _page((encoded for _, (_, encoded) in ordered[begin:]), self._kind, wanted, limit)

    async def close(self) -> None:
        self._encoded.clear()


class SqliteStore(Store[T]):
    """Keeps all of them, or the last `max_count`. Several processes may use the same file."""

    def __init__(self, kind: type[T], path: Path, max_count: int | None = None) -> None:
        self._kind: type[T] = kind
        self._table = TABLES[kind]
        self._lock = threading.Lock()
        self._max_count = max_count
        try:
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(
                f"CREATE TABLE IF NOT EXISTS {self._table} (id TEXT PRIMARY KEY, stored BLOB NOT NULL)"
            )
        except sqlite3.Error as error:
            raise ConfigError(f"The response store {str(path)!r} cannot be used ({error}).") from None

    async def put(self, value: T) -> None:
        encoded = msgspec.json.encode(value)
        # A row that is written again keeps its place.
        again = "ON CONFLICT (id) DO UPDATE SET stored = excluded.stored"
        await self._run(f"INSERT INTO {self._table} VALUES (?, ?) {again}", value.id, encoded)
        if self._max_count is not None:
            oldest = f"(SELECT max(rowid) FROM {self._table}) - ?"
            await self._run(f"DELETE FROM {self._table} WHERE rowid <= {oldest}", self._max_count)

    async def get(self, name: str) -> T | None:
        rows = await self._run(f"SELECT stored FROM {self._table} WHERE id = ?", name)
        return msgspec.json.decode(rows[0][0], type=self._kind) if rows else None

    async def delete(self, name: str) -> bool:
        return bool(await self._run(f"DELETE FROM {self._table} WHERE id = ? RETURNING id", name))

    async def page(
        self, wanted: Callable[[T], bool], after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[T], bool]:
        return await asyncio.to_thread(
            lambda: _page(self._rows(after, newest_first), self._kind, wanted, limit),
        )

    def _rows(self, after: str | None, newest_first: bool) -> Iterator[bytes]:
        place: list[Any] = self._run_locked(f"SELECT rowid FROM {self._table} WHERE id = ?", (after or "",))
        compare, order = ("<", "DESC") if newest_first else (">", "ASC")
        statement = f"SELECT rowid, stored FROM {self._table} {{}} ORDER BY rowid {order} LIMIT {PAGE_ROWS}"
        while True:
            where = f"WHERE rowid {compare} ?" if place else ""
            rows = self._run_locked(statement.format(where), tuple(place[-1][:1]) if place else ())
            if not rows:
                return
            yield from (stored for _, stored in rows)
            place = rows

    async def close(self) -> None:
        with self._lock:
            self._database.close()

    async def _run(self, statement: str, *values: str | bytes | int) -> list[Any]:
        return await asyncio.to_thread(self._run_locked, statement, values)

    def _run_locked(self, statement: str, values: tuple[str | bytes | int, ...]) -> list[Any]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()


def _page(encoded: Iterable[bytes], kind: type[T], wanted: Callable[[T], bool], limit: int) -> tuple[list[T], bool]:
    decoded = (msgspec.json.decode(one, type=kind) for one in encoded)
    found = list(itertools.islice(filter(wanted, decoded), limit + 1))
    return found[:limit], len(found) > limit
