"""A connection to an engine in another process, for an asyncio program.

Nothing here polls: the event loop watches the socket's descriptor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from interleaf import errors
from interleaf.engine import wire
from interleaf.errors import EngineDeadError, EngineError, InterleafError
from interleaf.messages import (
    Call,
    EngineOutputs,
    FromEngine,
    Hello,
    Ping,
    Pong,
    Ready,
    Reply,
    SchedulerStats,
    StartFailure,
    ToEngine,
)
from interleaf.observe import get_logger

logger = get_logger(__name__)

T = TypeVar("T")
Answer = bool | bytes | SchedulerStats | None

RECONNECT_MILLISECONDS = 20
"""Between attempts to reach a socket that is not there yet."""


class Connection:
    """One front end's connection to one run of an engine; made in a running event loop.

    Args:
        address: the engine's socket, which may come into being later.
        on_outputs: called with each step's news.

    Fields:
        ready: resolves with what the engine says when it can compute, or with the error that kept it from starting.
        lost: resolves with a reason once the engine is gone.
        last_heard: when the engine last said anything, in seconds of the monotonic clock.
        last_news: the same of what its loop said, not of answers to pings.
        knows_vocabulary: whether the engine was sent one here.
    """

    def __init__(self, address: str, on_outputs: Callable[[EngineOutputs], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[Ready] = self._loop.create_future()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.last_heard = self.last_news = time.monotonic()
        self.knows_vocabulary = False
        self._on_outputs = on_outputs
        self._number = 0
        self._replies: dict[int, asyncio.Future[Answer]] = {}
        self._pongs: dict[int, asyncio.Future[Pong]] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MILLISECONDS)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._descriptors = [(self._socket.FD, self._drain), (self._monitor.FD, self._drain_monitor)]
        for descriptor, callback in self._descriptors:
            self._loop.add_reader(descriptor, callback)
        self._socket.connect(address)
        self.send(Hello())
        # A descriptor tells of changes from emptiness only, which has to be seen once.
        self._loop.call_soon(self._drain_monitor)

    def send(self, message: ToEngine) -> None:
        """Send a message; if the engine is gone, it comes to nothing."""
        if self._socket.closed:
            return
        self._socket.send(wire.encode(message), zmq.NOBLOCK)
        # Sending may have swallowed what the descriptor was about to tell.
        self._loop.call_soon(self._drain)

    async def call(self, utility: str) -> Answer:
        """Run one of the engine's utilities between two steps.

        Raises:
            EngineError: the utility failed.
            EngineDeadError: the engine went away before it answered.
        """
        number = self._next_number()
        return await self._answer(self._replies, number, Call(number, utility))

    async def ping(self) -> Pong:
        """
        Raises:
            EngineDeadError: the engine went away before it answered.
        """
        number = self._next_number()
        return await self._answer(self._pongs, number, Ping(number))

    def lose(self, reason: str) -> None:
        """Give the connection up; whoever waits for an answer gets `EngineDeadError`."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        waiters: list[asyncio.Future[Any]] = [self.ready, *self._replies.values(), *self._pongs.values()]
        for waiting in waiters:
            if not waiting.done():
                waiting.set_exception(EngineDeadError(reason))
                waiting.exception()
        self.close()

    def lose_after(self, seconds: float, reason: str) -> None:
        """`lose`, unless it happens by itself before."""
        self._loop.call_later(seconds, self.lose, reason)

    def close(self) -> None:
        """Close the sockets; idempotent."""
        if self._socket.closed:
            return
        for descriptor, _ in self._descriptors:
            self._loop.remove_reader(descriptor)
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    async def _answer(self, waiting: dict[int, asyncio.Future[T]], number: int, message: ToEngine) -> T:
        if self.lost.done():
            raise EngineDeadError(self.lost.result())
        answer: asyncio.Future[T] = self._loop.create_future()
        waiting[number] = answer
        try:
            self.send(message)
            return await answer
        finally:
            del waiting[number]

    def _drain(self) -> None:
        while not self._socket.closed:
            try:
                raw = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.last_heard = time.monotonic()
            try:
                message = wire.decode_from_engine(raw)
            except (msgspec.DecodeError, ValueError):
                logger.exception("a message of the engine cannot be read")
                self.lose("The engine sent a message that cannot be read.")
                return
            if not isinstance(message, Pong):
                self.last_news = self.last_heard
            self._take(message)

    def _drain_monitor(self) -> None:
        disconnected = False
        while not self._monitor.closed:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
            disconnected |= event["event"] == zmq.EVENT_DISCONNECTED
        if disconnected:
            # What it sent before it went may still lie in the socket.
            self._drain()
            self.lose("The engine process has ended.")

    def _take(self, message: FromEngine) -> None:
        match message:
            case EngineOutputs():
                self._on_outputs(message)
            case Pong():
                _resolve(self._pongs.get(message.number), message)
            case Reply(number, value, None):
                _resolve(self._replies.get(number), value)
            case Reply(number, _, error):
                waiting = self._replies.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_exception(EngineError(error))
            case Ready():
                _resolve(self.ready, message)
            case StartFailure(name, sentence):
                if not self.ready.done():
                    self.ready.set_exception(_error(name, sentence))
                    self.ready.exception()


def _resolve(waiting: asyncio.Future[T] | None, value: T) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(value)


def _error(name: str, sentence: str) -> InterleafError:
    """The exception that the engine's process raised."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, InterleafError):
        return kind(sentence)
    return EngineError(sentence)
