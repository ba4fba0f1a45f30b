"""Starting a server, and ending it well: a signal lets what runs finish before anything is closed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol, Self

import uvicorn

from interleaf.engine.garbage import settle
from interleaf.errors import ConfigError
from interleaf.observe import get_logger
from interleaf.server.app import create_app
from interleaf.server.chat_prompt import template_text
from interleaf.server.engine import Engine
from interleaf.server.options import Listen, ServerOptions
from interleaf.server.peers import Peers

logger = get_logger(__name__)

BACKLOG = 2048
LAST_SECONDS = 5
"""For connections to close once nothing runs any more."""


class StartableEngine(Engine, Protocol):
    """An engine that the server starts and ends."""

    async def start(self) -> None: ...

    async def shutdown(self, drain_timeout: float) -> None: ...


def bind(listen: Listen) -> socket.socket:
    """A socket at the address, not listening yet: a port that is taken is known before the model is loaded.

    Raises:
        ConfigError: the address cannot be had.
    """
    try:
        if listen.uds is not None:
            _remove_stale_socket(listen.uds)
            bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            bound.bind(listen.uds)
            return bound
        if not 0 <= listen.port < 1 << 16:
            raise OverflowError("ports go from 0 to 65535")
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        place = listen.uds or f"{listen.host}:{listen.port}"
        raise ConfigError(f"The server cannot listen at {place} ({error}): choose another address.") from None
    return bound


def spread(bound: socket.socket, count: int) -> list[socket.socket]:
    """So many sockets at the address of this one, which is closed; the system spreads connections over them.

    If processes took them from one socket, the first to wake would take most. A Unix socket cannot be had twice, and
    is shared.

    Raises:
        ConfigError: the address was taken meanwhile.
    """
    if bound.family == socket.AF_UNIX:
        return [bound] * count
    address = bound.getsockname()
    bound.close()
    sockets = []
    try:
        for _ in range(count):
            one = socket.socket(bound.family, bound.type)
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(address)
    except OSError as error:
        raise ConfigError(f"The server cannot listen at {address[0]}:{address[1]} ({error}).") from None
    return sockets


async def serve(
    engine: StartableEngine, bound: socket.socket, listen: Listen, options: ServerOptions, shutdown_timeout: float
) -> None:
    """Start the engine and serve it until a signal comes; then finish what runs.

    Args:
        bound: from `bind`.
        shutdown_timeout: seconds that running requests have to end.

    Raises:
        InterleafError: the engine cannot start.
    """

    def tell() -> None:
        logger.info("%s is served at %s", options.served_model_names[0], listen.address(bound))

    with Signals() as stop:
        if await serve_until(stop, engine, bound, listen, options, shutdown_timeout, tell):
            remove_own_socket(listen)


async def serve_until(
    stop: Stop,
    engine: StartableEngine,
    bound: socket.socket,
    listen: Listen,
    options: ServerOptions,
    shutdown_timeout: float,
    started: Callable[[], None],
    peers: Peers | None = None,
) -> bool:
    """`serve`, as one of several front ends or alone.

    Args:
        stop: the first ends the taking in of work, the second everything.
        started: called when requests are taken.
        peers: the other front ends.

    Returns:
        whether it was served at all.
    """
    starting = asyncio.ensure_future(engine.start())
    try:
        if not await first(starting, stop):
            starting.cancel()
            return False
        template = template_text(options.chat_template, engine.tokenizer.chat_templates)
        app = create_app(engine, replace(options, chat_template=template), peers)
        server = _server(app, listen, options.root_path, started)
        settle()
        serving = asyncio.ensure_future(server.serve(sockets=[bound]))
        if await first(serving, stop):
            return True
        logger.info("Shutting down: running requests have %g s to end", shutdown_timeout)
        draining = asyncio.ensure_future(app.state.server.drain(shutdown_timeout))
        if not await first(draining, stop) or not draining.result():
            logger.warning("Requests were still running and are ended now")
    finally:
        await engine.shutdown(0)
    server.should_exit = True
    await serving
    return True


class Stop(Protocol):
    """Orders to stop, one after the other."""

    async def wait(self) -> None:
        """Until the next one."""


class Signals:
    """SIGTERM and SIGINT, each of which ends a wait."""

    def __init__(self) -> None:
        self._arrived = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def wait(self) -> None:
        """Until the next signal."""
        await self._arrived.wait()
        self._arrived.clear()

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._arrived.set)
        return self

    def __exit__(self, *error: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)


async def first(work: asyncio.Future[None] | asyncio.Future[bool], stop: Stop) -> bool:
    """Whether `work` was done before the order to stop came."""
    waiting = asyncio.ensure_future(stop.wait())
    await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if work.done():
        work.result()
        return True
    return False


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would close connections at once; tells when it has started."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(app: object, listen: Listen, root_path: str, started: Callable[[], None]) -> _Server:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        root_path=root_path.rstrip("/"),
        ssl_keyfile=listen.ssl_keyfile,
        ssl_certfile=listen.ssl_certfile,
        ssl_ca_certs=listen.ssl_ca_certs,
        ssl_cert_reqs=listen.ssl_cert_reqs,
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=LAST_SECONDS,
        ws="none",
    )
    return _Server(config, started)


def _remove_stale_socket(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)


def remove_own_socket(listen: Listen) -> None:
    """Leave no Unix socket behind."""
    if listen.uds is not None:
        Path(listen.uds).unlink(missing_ok=True)
