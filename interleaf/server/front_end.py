"""One of several front ends of a server, in a process of its own.

Started as `python -m interleaf.server.front_end` by `interleaf.server.front_ends`, with a `FrontEndStart` on its
standard input. Orders follow it, a byte each; when the input ends, the parent is dead, and this process follows.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from interleaf.config import EngineArgs
from interleaf.observe import LogSettings, configure_logging, get_logger, share_log
from interleaf.server.options import Listen, ServerOptions

logger = get_logger("interleaf.server.front_end")

LENGTH = struct.Struct("<I")
GO, STOP = b"g", b"s"
"""Orders: the engine is there; end (once more: at once)."""
READY = b"r"
"""What is written to standard output once requests are taken."""


@dataclass(frozen=True, slots=True)
class FrontEndOptions:
    """What a front end is told besides what the HTTP side is.

    Fields:
        shutdown_timeout: seconds that running requests have to end.
        max_num_queued_reqs, max_num_queued_tokens, otlp_traces_endpoint: as `AsyncEngine` has them.
    """

    shutdown_timeout: float
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    otlp_traces_endpoint: str | None = None


class FrontEndStart(msgspec.Struct):
    """What a front end is.

    Fields:
        address: of the engine.
        row: its number among `count`.
        directory: of what the front ends share.
        socket_fd, board_fd: descriptors of the socket to listen at and of the board, which it inherits.
    """

    args: EngineArgs
    listen: Listen
    options: ServerOptions
    own: FrontEndOptions
    address: str
    row: int
    count: int
    directory: str
    socket_fd: int
    board_fd: int
    log: LogSettings

    def encode(self) -> bytes:
        raw = msgspec.msgpack.encode(self, enc_hook=str)
        return LENGTH.pack(len(raw)) + raw


def read_start(descriptor: int) -> FrontEndStart:
    """Read what to be, and nothing behind it."""
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        [length] = LENGTH.unpack(_exactly(file, LENGTH.size))
        return msgspec.msgpack.decode(_exactly(file, length), type=FrontEndStart, dec_hook=_path)


def _exactly(file: Any, length: int) -> bytes:
    raw = b""
    while len(raw) < length:
        piece = file.read(length - len(raw))
        if not piece:
            raise SystemExit("The parent ended before it said what to be.")
        raw += piece
    return raw


def _path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} has no form on the wire")


class Orders:
    """What the parent says on standard input; see `interleaf.server.launch.Stop`."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._go, self._stop = asyncio.Event(), asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._read)

    async def go(self) -> None:
        """Until the engine is there, or there will be none."""
        await self._go.wait()

    async def wait(self) -> None:
        """Until the next order to end."""
        await self._stop.wait()
        self._stop.clear()

    def _read(self) -> None:
        orders = os.read(sys.stdin.fileno(), 100)
        if not orders:
            shutil.rmtree(self._directory, ignore_errors=True)
            os._exit(1)
        if GO in orders:
            self._go.set()
        if STOP in orders:
            self._go.set()
            self._stop.set()


async def run(start: FrontEndStart) -> None:
    """Serve until the parent says to end."""
    # Imported while the engine loads its model.
    from interleaf.frontend.async_engine import AsyncEngine
    from interleaf.frontend.board import Board, Seat
    from interleaf.server.launch import serve_until
    from interleaf.server.peers import Peers

    orders = Orders(start.directory)
    seat = Seat(Board(start.count, start.board_fd), start.row)
    engine = AsyncEngine(
        start.args,
        max_num_queued_reqs=start.own.max_num_queued_reqs,
        max_num_queued_tokens=start.own.max_num_queued_tokens,
        otlp_traces_endpoint=start.own.otlp_traces_endpoint,
        served_model_name=start.options.served_model_names[0],
        address=start.address,
        seat=seat,
    )
    peers = Peers(seat, start.count, Path(start.directory))
    with socket.socket(fileno=start.socket_fd) as bound:
        await orders.go()
        await serve_until(
            orders, engine, bound, start.listen, start.options, start.own.shutdown_timeout, _tell_ready, peers
        )


def _tell_ready() -> None:
    os.write(sys.stdout.fileno(), READY)


def main() -> int:
    """Be a front end, as the standard input says; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # They are sent to all processes of a service; the parent tells when to end.
        signal.signal(number, signal.SIG_IGN)
    start = read_start(sys.stdin.fileno())
    configure_logging(start.log)
    for name in ("uvicorn", "opentelemetry"):
        share_log(name)
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(start))
    except Exception:
        logger.critical("front end %d failed", start.row, exc_info=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
