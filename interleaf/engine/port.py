"""The engine's socket, served by a thread of its own.

While the native library computes, without the interpreter's lock, this thread takes in requests and
sends the news of the step before. It sleeps in `poll` otherwise. Pings are answered here, so that a
long step is not mistaken for a stopped process.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

import zmq

from interleaf.engine import wire
from interleaf.messages import FromEngine, Ping, Pong, ToEngine
from interleaf.observe import get_logger

logger = get_logger(__name__)

Identity = bytes
"""How the socket names a front end."""
Received = tuple[Identity, ToEngine]


class Port:
    """Talks with any number of front ends; each has an identity, by which it is answered.

    Args:
        address: of a Unix socket, in a directory that only this user may enter.
        parent_fd: a pipe whose other end the parent holds: when the parent dies, it ends.
        on_parent_death: called in the port's thread; should end the process.
    """

    def __init__(self, address: str, parent_fd: int, on_parent_death: Callable[[], None]) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        # Nothing may be dropped on the way: a lost message would be a hole in somebody's text.
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.bind(address)
        self._alarm, self._bell = os.pipe()
        for descriptor in (self._alarm, self._bell):
            os.set_blocking(descriptor, False)
        self._parent_fd = parent_fd
        self._on_parent_death = on_parent_death
        self._inbox: queue.SimpleQueue[Received | None] = queue.SimpleQueue()
        self._outbox: deque[tuple[Identity, FromEngine]] = deque()
        self._vanished: deque[Identity] = deque()
        self._busy_since: float | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="interleaf-port", daemon=True)
        self._thread.start()

    def receive(self, block: bool) -> list[Received]:
        """Everything that has come in; with `block`, sleep until there is something, or `wake` is called."""
        received: list[Received | None] = []
        if block and self._inbox.empty():
            self._busy_since = None
            received.append(self._inbox.get())
        self._busy_since = time.monotonic()
        while not self._inbox.empty():
            received.append(self._inbox.get_nowait())
        return [message for message in received if message is not None]

    def wake(self) -> None:
        """End the sleep in `receive`; may be called in any thread."""
        self._inbox.put(None)

    def send(self, messages: list[tuple[Identity, FromEngine]]) -> None:
        """Hand messages over; they are encoded and sent by the port's thread."""
        if messages:
            self._outbox.extend(messages)
            self._ring()

    def vanished(self) -> list[Identity]:
        """Front ends that a message could not be brought to since the last call."""
        gone = list(self._vanished)
        for _ in gone:
            self._vanished.popleft()
        return gone

    def close(self) -> None:
        """Send what is left, then close."""
        self._closing = True
        self._ring()
        self._thread.join()
        self._socket.close()
        for descriptor in (self._alarm, self._bell):
            os.close(descriptor)
        self._context.term()

    def _ring(self) -> None:
        """Wake the port's thread. A pipe costs a fifth of what a socket of ZMQ's costs."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._bell, b"\0")

    def _serve(self) -> None:
        try:
            self._poll()
        except Exception:
            # Without this thread nobody would hear the engine any more: rather a new process.
            logger.exception("the engine's socket failed")
            os._exit(1)

    def _poll(self) -> None:
        poller = zmq.Poller()
        for readable in (self._socket, self._alarm, self._parent_fd):
            poller.register(readable, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._parent_fd in ready and not os.read(self._parent_fd, 1 << 16):
                self._on_parent_death()
            if self._alarm in ready:
                os.read(self._alarm, 1 << 16)
            self._flush()
            if self._closing:
                return
            if self._socket in ready:
                self._drain()

    def _flush(self) -> None:
        while self._outbox:
            identity, message = self._outbox.popleft()
            try:
                self._socket.send_multipart((identity, wire.encode(message)))
            except zmq.ZMQError:
                self._vanished.append(identity)

    def _drain(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
                if len(frames) == 2:
                    self._take(frames[0], frames[1])

    def _take(self, identity: Identity, raw: bytes) -> None:
        try:
            message = wire.decode_to_engine(raw)
        except Exception as error:
            # Besides msgspec's own errors, bytes that are no text or nested too deeply raise Python's.
            logger.warning("a message of %d bytes that is none was dropped: %s", len(raw), error)
            return
        if isinstance(message, Ping):
            since = self._busy_since
            step_seconds = 0.0 if since is None else time.monotonic() - since
            self._outbox.append((identity, Pong(message.number, step_seconds, time.process_time())))
            self._flush()
        else:
            self._inbox.put((identity, message))
