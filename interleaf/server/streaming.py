"""Server-sent events, and work that ends when its client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from interleaf.server.errors import api_error

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
DIRECT_SEND = "interleaf.send"
"""In a request's scope: what sends to the client without the layers between."""
encode = msgspec.json.Encoder().encode


def event(value: Any, name: str | None = None) -> bytes:
    """One event with a JSON value."""
    if name is None:
        return b"data: " + encode(value) + b"\n\n"
    return b"event: " + name.encode() + b"\ndata: " + encode(value) + b"\n\n"


def json_response(value: Any, status: int = 200) -> Response:
    """A response with a JSON body."""
    return Response(encode(value), status, media_type="application/json")


class ClientGoneError(Exception):
    """Nobody is there to take the response."""


class EventStream(Response):
    """A response that sends events as they are made.

    The events' generator is closed when the client goes away, at whatever point that is.

    Args:
        openai: an error behind the first event becomes an event, and `[DONE]` is the last.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], openai: bool) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._rest = rest
        self._openai = openai

    @classmethod
    async def begin(cls, receive: Receive, events: AsyncGenerator[bytes, None], openai: bool = False) -> EventStream:
        """Wait for the first event, so that what fails before it can have a status of its own."""
        return cls(await until_gone(receive, _next(events)), events, openai)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            with suppress(ClientGoneError):
                await until_gone(receive, self._send_all(scope, send))

    async def _send_all(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # The layers around the app have seen what they look for: from here on each would only pass messages on.
        send = scope.get(DIRECT_SEND, send)
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        try:
            async for data in self._rest:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:
            if not self._openai:
                raise
            await send({"type": "http.response.body", "body": event(api_error(error).body()), "more_body": True})
        await send({"type": "http.response.body", "body": DONE if self._openai else b""})


async def _next(events: AsyncGenerator[bytes, None]) -> bytes:
    try:
        return await anext(events)
    except BaseException:
        await events.aclose()
        raise


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away.

    Raises:
        ClientGoneError: it did.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for one in (task, watch):
            if not one.done():
                one.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await one


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Values of several streams as they come, each with its stream's number; one that fails ends them all."""
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue(maxsize=1024)

    async def pump(number: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream) as values:
                async for value in values:
                    await queue.put((number, value))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.ensure_future(pump(number, stream)) for number, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
