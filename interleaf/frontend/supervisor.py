"""Keeps an engine process running: starts it, notices when it dies or hangs, and starts it again.

What the requests need then is the business of `interleaf.frontend.open_requests` and
`interleaf.frontend.recovery`; this is about the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from interleaf.config import EngineArgs, EngineConfig, block_bytes
from interleaf.engine import wire
from interleaf.engine.remote import Connection
from interleaf.engine.step_record import read_stats, read_step_record
from interleaf.errors import EngineDeadError, EngineError, InsufficientMemoryError, InterleafError
from interleaf.messages import EngineOutputs, Ping, Pong, Ready, SchedulerStats
from interleaf.observe import LogSettings, get_logger

logger = get_logger(__name__)

ENGINE_MODULE = "interleaf.engine.process"
SOCKET_NAME = "socket"
STEP_RECORD_NAME = "step"
LONGEST_SOCKET_PATH = 100
"""In bytes; the system's own limit is a little higher."""

LAST_WORDS_SECONDS = 0.1
IDLE_CPU_SHARE = 0.05
"""A step that uses less of a processor than this is stuck, not slow."""


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """When an engine counts as dead. All times in seconds.

    Fields:
        hang_timeout: of silence, after a question, or of a step that computes nothing.
        quiet_time: without news of pending work before the engine is asked.
        step_timeout: of one step, however busy it is.
        start_timeout: of silence while the model is loaded.
        attach_timeout: until an engine of another process is there (again).
        max_failures: starts in a row that came to nothing before giving up.
        backoff: before the second of them; it doubles from one to the next.
        engine_module: what is run as the engine.
    """

    hang_timeout: float = 5.0
    quiet_time: float = 1.0
    step_timeout: float = 600.0
    start_timeout: float = 60.0
    attach_timeout: float = 60.0
    max_failures: int = 4
    backoff: float = 0.25
    engine_module: str = ENGINE_MODULE


class Supervised(Protocol):
    """Whoever has work for the engine."""

    def engine_started(self, ready: Ready) -> None:
        """An engine is there, and knows nothing of what was before but the sums of counters."""

    def engine_died(self, computed: set[str], step: int) -> None:
        """It is gone; it was computing these requests in this step."""

    def engine_given_up(self, error: InterleafError) -> None:
        """There will be no other."""

    def outputs_arrived(self, news: EngineOutputs) -> None:
        """News of a step."""


class EngineProcess:
    """One run of the engine process. Made in the event loop's thread."""

    def __init__(self, start: wire.EngineStart, module: str) -> None:
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        # -P: the working directory is no place to import from.
        self._process = subprocess.Popen([sys.executable, "-P", "-m", module], stdin=subprocess.PIPE)
        assert self._process.stdin is not None
        raw = wire.encode(start)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(wire.START_LENGTH.pack(len(raw)) + raw)
            self._process.stdin.flush()
        threading.Thread(target=self._wait, args=(loop,), name="interleaf-engine-wait", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """End it, whatever it does; ending it again does nothing."""
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Let go of the pipe that keeps it alive."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        status = self._process.wait()
        # The loop may have been closed meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._note_exit, status)

    def _note_exit(self, status: int) -> None:
        if not self.exited.done():
            self.exited.set_result(status)


class Supervisor:
    """Sees to it that there is an engine, and a connection to it.

    Args:
        args: of the engine.
        work: is told of the engine's comings and goings.
        address: of an engine that another process supervises; None starts one of our own.
    """

    def __init__(self, args: EngineArgs, work: Supervised, options: SupervisorOptions, address: str | None) -> None:
        self._args = self._first_args = args
        self._work = work
        self._options = options
        self._owns_engine = address is None
        self._directory = private_directory() if address is None else Path(address.removeprefix("ipc://")).parent
        self.address = address or f"ipc://{self._directory / SOCKET_NAME}"
        self.connection: Connection | None = None
        self._process: EngineProcess | None = None
        self._num_starts = 0
        self._step_record = ""
        self._stats = SchedulerStats()
        self._keeper: asyncio.Task[None] | None = None
        self._watched = asyncio.Event()
        self._pending = False
        self._suspicious = False

    @property
    def pid(self) -> int | None:
        """Process id of the engine, where it is ours and runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the engine, or find it, and keep it up from then on.

        Raises:
            InterleafError: it cannot start.
        """
        try:
            connection = await self._bring_up()
        except BaseException:
            self._remove_directory()
            raise
        self._keeper = asyncio.create_task(self._keep_up(connection), name="interleaf-supervisor")

    async def stop(self, timeout: float = 2.0) -> None:
        """End the engine if it is ours, else leave it alone. Stopping again does nothing."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        connection, process = self.connection, self._process
        if connection is not None and connection.ready.done():
            with contextlib.suppress(EngineError, TimeoutError):
                # Where the engine is not ours, any answer tells that it has seen what was sent before.
                await asyncio.wait_for(connection.call("shutdown" if process else "check_health"), timeout)
                if process is not None:
                    await asyncio.wait_for(asyncio.shield(process.exited), timeout)
        await self._clear_away("The engine was shut down.")
        self._remove_directory()

    def set_busy(self, busy: bool) -> None:
        """Say whether news are expected: an engine is watched only then."""
        self._pending = busy
        self._set_watched()

    def suspect(self) -> None:
        """Have a look at the engine even though no work is pending: somebody found it unresponsive."""
        self._suspicious = True
        self._set_watched()

    def _set_watched(self) -> None:
        if self._pending or self._suspicious:
            self._watched.set()
        else:
            self._watched.clear()

    async def _bring_up(self) -> Connection:
        if self._owns_engine:
            start = wire.EngineStart(
                self._args, self.address, str(self._new_step_record()), LogSettings.current(), self._counters()
            )
            try:
                self._process = EngineProcess(start, self._options.engine_module)
            except OSError as error:
                raise EngineDeadError(f"The engine process cannot be started ({error.strerror}).") from None
        connection = self.connection = Connection(self.address, self._outputs_arrived)
        if self._process is not None:
            # The last words of a process that has ended may still be on their way.
            self._process.exited.add_done_callback(
                lambda exited: connection.lose_after(LAST_WORDS_SECONDS, _how_it_ended(exited.result()))
            )
        try:
            ready = await self._loaded(connection)
        except EngineDeadError as error:
            cause = await self._cause(str(error))
            await self._clear_away(cause)
            raise EngineDeadError(cause) from None
        except BaseException:
            await self._clear_away("The engine did not start.")
            raise
        self._args = _pinned(self._args, ready.config)
        self._stats, self._step_record = ready.stats, ready.step_record
        self._work.engine_started(ready)
        return connection

    def _new_step_record(self) -> Path:
        """Where the next engine notes what it computes. Front ends may be reading the last one's, but no older one."""
        self._num_starts += 1
        (self._directory / f"{STEP_RECORD_NAME}-{self._num_starts - 2}").unlink(missing_ok=True)
        return self._directory / f"{STEP_RECORD_NAME}-{self._num_starts}"

    def _counters(self) -> SchedulerStats:
        """What the next engine's counters go on from."""
        if self._step_record:
            # Front ends may have shown more than was told here last.
            self._stats = (read_stats(Path(self._step_record)) or self._stats).only_counters()
            self._stats.num_restarts += 1
            self._step_record = ""
        return self._stats

    def _outputs_arrived(self, news: EngineOutputs) -> None:
        if news.stats is not None:
            self._stats = news.stats
        self._work.outputs_arrived(news)

    async def _loaded(self, connection: Connection) -> Ready:
        """Wait until the model is loaded; a process that answers no question meanwhile counts as dead."""
        patience = self._options.start_timeout if self._owns_engine else self._options.attach_timeout
        while True:
            done, _ = await asyncio.wait([connection.ready], timeout=self._options.hang_timeout)
            if done:
                return connection.ready.result()
            if time.monotonic() - connection.last_heard > patience:
                connection.lose(f"The engine process did not answer for {patience:g} seconds while it started.")
            connection.send(Ping(0))

    async def _keep_up(self, connection: Connection) -> None:
        try:
            await self._restart_for_ever(connection)
        except Exception:
            # Rather tell everybody than let them wait for an engine that nobody will start.
            logger.exception("the engine's supervisor failed")
            self._work.engine_given_up(EngineDeadError("The engine's supervisor failed: see its log."))

    async def _restart_for_ever(self, connection: Connection) -> None:
        failures = 0
        while True:
            begin = time.monotonic()
            watch = asyncio.create_task(self._watch(connection)) if self._owns_engine else None
            try:
                reason = await asyncio.shield(connection.lost)
            finally:
                if watch is not None:
                    watch.cancel()
            reason = await self._cause(reason)
            if self._owns_engine:
                logger.error("%s It is started again.", reason)
            step, computed = read_step_record(Path(self._step_record))
            lived = computed or time.monotonic() - begin > 2 * self._options.hang_timeout
            failures = 0 if lived else failures + 1
            self._work.engine_died(computed, step)
            await self._clear_away(reason)
            again = await self._bring_up_again(failures)
            if again is None:
                return
            connection = again

    async def _bring_up_again(self, failures: int) -> Connection | None:
        """The next engine, or None after too many failures in a row."""
        error: InterleafError = EngineDeadError("The engine process ends as soon as it has started: see its log.")
        while failures < self._options.max_failures:
            if failures:
                await asyncio.sleep(self._options.backoff * 2 ** (failures - 1))
            try:
                return await self._bring_up()
            except InterleafError as failure:
                logger.error("The engine did not start again: %s", failure)
                error, failures = failure, failures + 1
                if isinstance(failure, InsufficientMemoryError):
                    self._args = self._first_args
        self._work.engine_given_up(error)
        return None

    async def _watch(self, connection: Connection) -> None:
        """Give up an engine that owes news and neither answers questions nor computes."""
        options = self._options
        last: tuple[float, Pong] | None = None
        idle_seconds = 0.0
        while True:
            await self._watched.wait()
            quiet = time.monotonic() - connection.last_news
            if quiet < options.quiet_time and not self._suspicious:
                last, idle_seconds = None, 0.0
                await asyncio.sleep(options.quiet_time - quiet)
                continue
            try:
                pong = await asyncio.wait_for(connection.ping(), options.hang_timeout)
            except TimeoutError:
                connection.lose(f"The engine process has not answered for {options.hang_timeout:g} seconds.")
                return
            now = time.monotonic()
            if last is not None:
                idle_seconds = idle_seconds + now - last[0] if computes_nothing(last[1], pong, now - last[0]) else 0.0
            last = now, pong
            if idle_seconds >= options.hang_timeout or pong.step_seconds > options.step_timeout:
                connection.lose(f"The engine has been stuck in a step for {pong.step_seconds:.0f} seconds.")
                return
            if not pong.step_seconds:
                self._suspicious = False
                self._set_watched()
            await asyncio.sleep(options.quiet_time)

    async def _cause(self, reason: str) -> str:
        """Why the engine was lost: the process' own end tells it better than the end of its connection."""
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                return _how_it_ended(await asyncio.wait_for(asyncio.shield(self._process.exited), LAST_WORDS_SECONDS))
        return reason

    async def _clear_away(self, reason: str) -> None:
        """Close the connection, and make sure that the process is gone before another may start."""
        if self.connection is not None:
            self.connection.lose(reason)
            self.connection = None
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await asyncio.shield(process.exited)
            process.close()
        self._suspicious = False
        self._set_watched()

    def _remove_directory(self) -> None:
        if self._owns_engine:
            shutil.rmtree(self._directory, ignore_errors=True)


def computes_nothing(before: Pong, after: Pong, seconds: float) -> bool:
    """Whether the engine was in one step all of this time, and left the processor alone."""
    cpu_seconds = after.cpu_seconds - before.cpu_seconds
    return after.step_seconds >= seconds and cpu_seconds < IDLE_CPU_SHARE * seconds


def _how_it_ended(status: int) -> str:
    return f"The engine process ended {f'by signal {-status}' if status < 0 else f'with status {status}'}."


def _pinned(args: EngineArgs, config: EngineConfig) -> EngineArgs:
    """Arguments that give the same engine again, though other memory may be free by then."""
    cache = config.cache
    size = block_bytes(config.model, config.draft_model, cache.dtype, cache.layout, cache.block_size)
    return replace(
        args,
        kv_cache_memory_bytes=cache.num_blocks * size,
        max_model_len=config.scheduler.max_model_len,
        seed=config.seed,
    )


def private_directory() -> Path:
    """A directory that only this user may enter, with a path short enough for a socket's address."""
    for parent in (None, "/tmp"):
        directory = tempfile.mkdtemp(prefix="interleaf-", dir=parent)
        if len(os.fsencode(directory)) + len(SOCKET_NAME) < LONGEST_SOCKET_PATH:
            break
        os.rmdir(directory)
    return Path(directory)
