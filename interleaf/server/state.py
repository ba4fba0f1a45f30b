"""What all endpoints share: the engine, the options, what is in flight, and what was stored."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from interleaf import __version__
from interleaf.config import EngineConfig
from interleaf.frontend.board import Tally
from interleaf.server.answers import AnswerParsers
from interleaf.server.engine import Engine
from interleaf.server.errors import ApiError
from interleaf.server.file_store import FileStore
from interleaf.server.options import ServerOptions
from interleaf.server.peers import Peers
from interleaf.server.protocol.batches import BatchObject
from interleaf.server.response_store import StoredChat, StoredResponse, open_store


@dataclass(frozen=True, slots=True)
class RunningBatch:
    """A batch that has not ended, and the task that runs it."""

    batch: BatchObject
    task: asyncio.Task[None]


class ServerState:
    """One server's state.

    Fields:
        parsers: of tool calls and reasoning.
        fingerprint: of what an answer depends on besides its request; the same for each server that is set up the same.
        draining: no new work is taken; the server ends when `in_flight` is 0.
        in_flight: requests, and work in the background, that have not ended here.
        peers: the other front ends.
        started: Unix time of the start.
        response_store: of /v1/responses.
        chat_store: of chats that are to be kept.
        background_responses: those that are being written, by id.
        files: uploaded files, and batches.
        batches: those that have not ended, by id.
        batch_turn: held by the batch that runs.
    """

    def __init__(self, engine: Engine, options: ServerOptions, peers: Peers | None = None) -> None:
        self.engine = engine
        self.options = options
        self.parsers = AnswerParsers(options, engine.tokenizer, _template(engine, options))
        self.fingerprint = _fingerprint(engine.config)
        self.draining = False
        self.in_flight = 0
        self.peers = peers or Peers()
        self.started = int(time.time())
        kept = (options.response_store, options.max_stored_responses)
        self.response_store = open_store(StoredResponse, *kept)
        self.chat_store = open_store(StoredChat, *kept)
        self.background_responses: dict[str, asyncio.Task[None]] = {}
        self.files = FileStore(options.files_dir)
        self.batches: dict[str, RunningBatch] = {}
        self.batch_turn = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def model_name(self) -> str:
        """The name that responses show."""
        return self.options.served_model_names[0]

    def check_model(self, name: str | None) -> str:
        """The name to show for a request for this model; None is the model that there is.

        Raises:
            ApiError: (404) the model is not served.
        """
        if not name:
            return self.model_name
        if name not in self.options.served_model_names:
            raise ApiError(404, f"The model {name[:200]!r} does not exist here.", "model", "model_not_found")
        return name

    @contextmanager
    def work(self) -> Iterator[None]:
        """Something that a drain waits for."""
        self.in_flight += 1
        self.peers.seat.add(Tally.IN_FLIGHT, 1)
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            self.peers.seat.add(Tally.IN_FLIGHT, -1)
            if not self.in_flight:
                self._idle.set()

    async def drain(self, timeout: float) -> bool:
        """Take no more work and wait for what there is; False if it did not end in time."""
        self.draining = True
        if not self.in_flight:
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something behind the requests; it is cancelled when the server ends."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel what runs in the background, and close what is open."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.peers.close()
        await self.response_store.close()
        await self.chat_store.close()
        self.files.close()


def _fingerprint(config: EngineConfig) -> str:
    facts = (__version__, config.model_name, config.model, config.dtype, config.quantization, config.cache.dtype)
    told = repr((*facts, config.scheduler.max_model_len))
    return f"fp_{hashlib.sha256(told.encode()).hexdigest()[:10]}"


def _template(engine: Engine, options: ServerOptions) -> str | None:
    """The text of the chat template that requests with tools are given by default."""
    templates: dict[str, str] = engine.tokenizer.chat_templates
    if options.chat_template is not None:
        return templates.get(options.chat_template, options.chat_template)
    return templates.get("tool_use", templates.get("default"))


def state_of(request: Request) -> ServerState:
    """The state of the server that a request came to."""
    state: ServerState = request.app.state.server
    return state
