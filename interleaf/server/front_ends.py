"""Several front ends of one engine: this process keeps the engine and them, and serves nothing itself.

They inherit the sockets that they listen at, which stay open here: connections that a front end has not taken when it
dies wait for the one that is started in its place. The others go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

from interleaf.config import EngineArgs
from interleaf.errors import EngineDeadError, InterleafError
from interleaf.frontend.board import Board
from interleaf.frontend.supervisor import Supervisor, SupervisorOptions, private_directory
from interleaf.messages import EngineOutputs, Ready
from interleaf.observe import LogSettings, get_logger
from interleaf.server.front_end import GO, READY, STOP, FrontEndOptions, FrontEndStart
from interleaf.server.launch import LAST_SECONDS, Signals, first, remove_own_socket, spread
from interleaf.server.options import Listen, ServerOptions
from interleaf.server.response_store import MAX_IN_MEMORY, StoredResponse, open_store

logger = get_logger(__name__)

MODULE = "interleaf.server.front_end"
SHORT_LIFE = 5.0
"""Seconds; a front end that lives no longer is started again only after a pause."""


async def serve_many(
    count: int, args: EngineArgs, bound: socket.socket, listen: Listen, options: ServerOptions, own: FrontEndOptions
) -> None:
    """Start the engine and `count` front ends, and keep them until a signal comes; then let them finish.

    Args:
        bound: from `bind`.

    Raises:
        InterleafError: the engine cannot start.
    """
    from interleaf.loader.checkpoint import locate

    # Once here, so that not every process fetches the model.
    await asyncio.to_thread(locate, args.model, args.revision)
    supervisor = Supervisor(args, _EngineLog(), SupervisorOptions(), None)
    directory = private_directory()
    try:
        options = await _shared_stores(options, directory)
        start = FrontEndStart(
            args,
            listen,
            options,
            own,
            supervisor.address,
            row=0,
            count=count,
            directory=str(directory),
            socket_fd=-1,
            board_fd=Board.shared_file(count),
            log=LogSettings.current(),
        )
        with Signals() as stop:
            await _serve(supervisor, FrontEnds(start, spread(bound, count)), stop)
    finally:
        await supervisor.stop()
        shutil.rmtree(directory, ignore_errors=True)
        remove_own_socket(listen)


async def _serve(supervisor: Supervisor, front_ends: FrontEnds, stop: Signals) -> None:
    try:
        starting = asyncio.ensure_future(supervisor.start())
        # They import meanwhile what they need.
        await front_ends.start()
        if not await first(starting, stop):
            starting.cancel()
            return
        # What front ends wait for is not known here: the engine is watched all the time.
        supervisor.set_busy(True)
        front_ends.go()
        ready = asyncio.ensure_future(front_ends.all_ready())
        if not await first(ready, stop):
            ready.cancel()
            return
        logger.info("%s by %d front ends", front_ends.place(), front_ends.count)
        await stop.wait()
        if not await first(asyncio.ensure_future(front_ends.stop()), stop):
            await front_ends.stop()
    finally:
        await front_ends.end()


async def _shared_stores(options: ServerOptions, directory: Path) -> ServerOptions:
    """The options with stores that all front ends can use; what nobody asked to keep goes with the server."""
    if options.response_store is None:
        options = replace(options, response_store=directory / "responses.sqlite", max_stored_responses=MAX_IN_MEMORY)
    # Made here, so that they don't all make it at once.
    await open_store(StoredResponse, options.response_store).close()
    return replace(options, files_dir=options.files_dir or directory / "files")


class _EngineLog:
    """Has no work for the engine; see `interleaf.frontend.supervisor.Supervised`."""

    def engine_started(self, ready: Ready) -> None:
        pass

    def engine_died(self, computed: set[str], step: int) -> None:
        pass

    def engine_given_up(self, error: InterleafError) -> None:
        logger.critical("The engine cannot be started again: %s", error)

    def outputs_arrived(self, news: EngineOutputs) -> None:
        pass


class FrontEnds:
    """The processes.

    Args:
        start: what they are, but for their numbers and sockets.
        sockets: for each of them.
    """

    def __init__(self, start: FrontEndStart, sockets: list[socket.socket]) -> None:
        self.count = start.count
        self._start = start
        self._sockets = sockets
        self._board = Board(start.count, start.board_fd)
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._ready = [asyncio.Event() for _ in range(start.count)]
        self._keepers: list[asyncio.Task[None]] = []
        self._may_go = self._ending = False

    def place(self) -> str:
        """Where what is served."""
        return (
            f"{self._start.options.served_model_names[0]} is served at {self._start.listen.address(self._sockets[0])}"
        )

    async def start(self) -> None:
        """Start them all; they wait for `go`."""
        for row in range(self.count):
            self._processes[row] = await self._spawn(row)
            self._keepers.append(asyncio.create_task(self._keep_up(row)))

    def go(self) -> None:
        """The engine is there."""
        self._may_go = True
        self._order(GO)

    async def all_ready(self) -> None:
        """Until all take requests.

        Raises:
            EngineDeadError: one ended before.
        """
        ready = asyncio.ensure_future(self._wait_for_all())
        done, _ = await asyncio.wait([ready, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
        if ready not in done:
            ready.cancel()
            raise EngineDeadError("A front end did not start: see its log.")

    async def _wait_for_all(self) -> None:
        for event in self._ready:
            await event.wait()

    async def stop(self) -> None:
        """Tell them to end, and wait until they have."""
        self._ending = True
        self._order(STOP)
        await asyncio.gather(*(asyncio.shield(keeper) for keeper in self._keepers))

    async def end(self) -> None:
        """See to it that none is left."""
        self._ending = True
        with contextlib.suppress(TimeoutError):
            if self._processes:
                await asyncio.wait_for(self.stop(), LAST_SECONDS)
        for process in self._processes.values():
            process.kill()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def _order(self, order: bytes) -> None:
        for process in self._processes.values():
            if process.stdin is not None and not process.stdin.is_closing():
                process.stdin.write(order)

    async def _spawn(self, row: int) -> asyncio.subprocess.Process:
        start = self._start
        start.row, start.socket_fd = row, self._sockets[row].fileno()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(start.socket_fd, start.board_fd),
        )
        assert process.stdin is not None
        process.stdin.write(start.encode())
        if self._may_go:
            process.stdin.write(GO)
        return process

    async def _keep_up(self, row: int) -> None:
        """Start the front end again whenever it ends, unless it shall or never came up."""
        loop = asyncio.get_running_loop()
        while True:
            process, begin = self._processes[row], loop.time()
            assert process.stdout is not None
            while word := await process.stdout.read(100):
                if READY in word:
                    self._ready[row].set()
            status = await process.wait()
            del self._processes[row]
            self._board.clear(row)
            if self._shall_end() or not self._ready[row].is_set():
                # Nobody will take what comes there.
                self._sockets[row].close()
                return
            logger.error("Front end %d ended with status %d. It is started again.", row, status)
            if loop.time() - begin < SHORT_LIFE:
                await asyncio.sleep(1)
            if self._shall_end():
                return
            self._processes[row] = await self._spawn(row)
            if self._shall_end():
                self._order(STOP)

    def _shall_end(self) -> bool:
        return self._ending
