"""What the front ends of one server ask each other: each answers at a Unix socket of its own.

A question is a line of JSON, `[name, argument]`, and so is its answer: `{"value": ...}`, or
`{"error": [status, message, param, code]}`. What one front end alone can do (run batches, end a task that
it began) is asked of it with `ask`; whoever has something is found with `ask_others`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from interleaf.frontend.board import Seat
from interleaf.observe import get_logger
from interleaf.server.errors import ApiError, api_error

logger = get_logger(__name__)

ANSWER_SECONDS = 30.0
OWNER = 0
"""The front end that runs batches."""

Answer = Callable[[str], Awaitable[Any]]


class Peers:
    """One front end's view of the others.

    Args:
        seat: its own; `seat.row` is its number.
        count: front ends of the server.
        directory: where their sockets are, if there is more than one.

    Fields:
        answers: what others may ask of this one, by name; filled by those who can answer.
    """

    def __init__(self, seat: Seat | None = None, count: int = 1, directory: Path | None = None) -> None:
        self.seat = seat or Seat()
        self.answers: dict[str, Answer] = {}
        self._others = [number for number in range(count) if number != self.seat.row]
        self._directory = directory or Path()
        self._server: asyncio.Server | None = None

    @property
    def is_owner(self) -> bool:
        """Whether this front end is the one that runs batches."""
        return self.seat.row == OWNER

    async def open(self) -> None:
        """Answer from now on."""
        if self._others:
            path = self._path(self.seat.row)
            path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._answer, path)

    async def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()

    async def ask(self, number: int, name: str, argument: str) -> Any:
        """The answer of one front end.

        Raises:
            ApiError: what it answered with; or (503) it is not there at the moment.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                raw = await self._exchange(number, msgspec.json.encode([name, argument]) + b"\n")
            told = msgspec.json.decode(raw)
        except (OSError, TimeoutError, msgspec.DecodeError) as error:
            logger.warning("Front end %d does not answer: %s", number, error or type(error).__name__)
            raise ApiError(
                503, "A part of the server is being started again: try again shortly.", headers={"Retry-After": "2"}
            ) from None
        if "error" in told:
            status, message, param, code = told["error"]
            raise ApiError(status, message, param, code)
        return told["value"]

    async def ask_others(self, name: str, argument: str) -> Any:
        """The first answer that is not empty, of whichever front end; those that are not there have none."""
        for number in self._others:
            with suppress(ApiError):
                answer = await self.ask(number, name, argument)
                if answer:
                    return answer
        return None

    async def _exchange(self, number: int, question: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._path(number))
        try:
            writer.write(question)
            return await reader.readline()
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            name, argument = msgspec.json.decode(await reader.readline(), type=tuple[str, str])
            writer.write(msgspec.json.encode(await self._told(name, argument)) + b"\n")
            await writer.drain()
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            logger.warning("A question of another front end was not answered: %s", error)
        finally:
            writer.close()

    async def _told(self, name: str, argument: str) -> dict[str, Any]:
        try:
            return {"value": await self.answers[name](argument)}
        except Exception as error:
            told = api_error(error)
            return {"error": [told.status_code, told.message, told.param, told.code]}

    def _path(self, number: int) -> Path:
        return self._directory / f"front-end-{number}"
