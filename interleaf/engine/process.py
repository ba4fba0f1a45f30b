"""The engine in a process of its own: receive, schedule, execute, update, send.

Started as `python -m interleaf.engine.process` with a `wire.EngineStart` on its standard input,
which stays open: when it ends, the parent is dead, and this process follows. Any other fault ends the process
too, with its traceback in the log; whoever supervises it starts it again and replays what was unfinished.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from interleaf.engine import wire
from interleaf.engine.core import EngineCore, Executor, ending
from interleaf.engine.garbage import settle
from interleaf.engine.port import Identity, Port
from interleaf.engine.request_check import check_request
from interleaf.engine.step_record import StepRecorder
from interleaf.errors import InterleafError, RequestError
from interleaf.machine import usable_cores
from interleaf.messages import (
    AbortRequests,
    AbortSequences,
    Call,
    EngineOutput,
    EngineOutputs,
    EngineRequest,
    FinishReason,
    FromEngine,
    Hello,
    Ping,
    Ready,
    Reply,
    SchedulerOutput,
    SchedulerStats,
    StartFailure,
    ToEngine,
    Vocabulary,
)
from interleaf.observe import configure_logging, get_logger

logger = get_logger("interleaf.engine.process")

SWITCH_SECONDS = 0.0005
"""How long one Python thread may keep another waiting: computing must not wait for sending."""
RUN_SECONDS = 0.02
"""Of decode steps that are done as one: so long a new request may wait until it is looked at."""
PR_SET_PDEATHSIG = 1
STATS_SECONDS = 0.25
"""Front ends without news of their own hear of the engine's state this often while it computes."""

MakeExecutor = Callable[[], Executor]


Loaded = tuple[Ready, EngineCore, MakeExecutor]
"""What the front ends are told, the engine, and how to make its executor again after a sleep."""


class EngineLoop:
    """Serves front ends until one asks for the end.

    Keeps, for each unfinished request, the front end that it came from.
    """

    def __init__(self, start: wire.EngineStart, loaded: Loaded, port: Port) -> None:
        ready, core, self._make_executor = loaded
        self._config = ready.config
        self._core = core
        self._before = start.before
        self._port = port
        core.grammars.on_ready = port.wake
        self._record_path = start.step_record
        self._recorder = StepRecorder(Path(start.step_record), ready.config.scheduler.max_num_seqs)
        self._front_end_of: dict[str, Identity] = {}
        self._told: dict[Identity, float] = {}
        """Front ends, and when each was last told of the engine's state."""
        self._last_step = -1
        self._stopping = False
        self._told_idle = True
        self._utilities: Mapping[str, Callable[[], bool | bytes | SchedulerStats | None]] = {
            "check_health": lambda: True,
            "stats": self._stats,
            "reset_prefix_cache": core.reset_prefix_cache,
            "block_map": core.block_map,
            "sleep": self._sleep,
            "wake_up": self._wake_up,
            "is_sleeping": lambda: core.sleeping,
            "shutdown": self._shut_down,
        }

    def run(self) -> None:
        while not self._stopping:
            self.receive()
            refused = self._core.admit_compiled() if self._core.grammars else []
            if refused:
                self.send(EngineOutputs(refused))
            if self._has_work() and not self._stopping:
                scheduled = self._core.schedule()
                if scheduled.total_num_scheduled_tokens:
                    self.record(scheduled)
                    self.send(self._core.update(scheduled, self._core.execute(scheduled)))
        self._recorder.close()

    def receive(self) -> None:
        """Take in what has come; sleep if there is nothing to do."""
        if not self._has_work() and not self._told_idle:
            self._tell_idle()
        for identity, message in self._port.receive(block=not self._has_work()):
            self._handle(identity, message)
            self._told_idle = False
        for identity in self._port.vanished():
            self._drop_front_end(identity)

    def record(self, scheduled: SchedulerOutput) -> None:
        """Note what is about to be computed, for the inquest if that kills this process."""
        self._last_step = scheduled.step
        self._recorder.write(scheduled.step, scheduled.num_scheduled_tokens)

    def send(self, news: EngineOutputs) -> None:
        """Give each front end the news of its own requests."""
        self._told_idle = False
        sorted_news: dict[Identity, list[EngineOutput]] = {}
        for output in news.outputs:
            sorted_news.setdefault(self._front_end_of[output.request_id], []).append(output)
        for output in news.outputs:
            if output.finish_reason is not None:
                self._forget_ended(output.request_id)
        now = time.monotonic()
        for identity, told in self._told.items():
            if now - told > STATS_SECONDS:
                sorted_news.setdefault(identity, [])
        stats = self._stats(slots=False)
        self._recorder.write_stats(stats)
        messages: list[tuple[Identity, FromEngine]] = []
        for number, (identity, outputs) in enumerate(sorted_news.items()):
            self._told[identity] = now
            messages.append((identity, EngineOutputs(outputs, stats, news.step, 0 if number else news.num_tokens)))
        self._port.send(messages)

    def _has_work(self) -> bool:
        return self._core.has_work() and not self._core.sleeping

    def _tell_idle(self) -> None:
        """Gauges would else stay as they were in the last step, however many requests were aborted since."""
        self._told_idle = True
        self._tell_stats()

    def _tell_stats(self) -> None:
        news = EngineOutputs(stats=self._stats())
        self._port.send([(identity, news) for identity in self._told])

    def _stats(self, slots: bool = True) -> SchedulerStats:
        stats = self._core.stats(slots).behind(self._before)
        stats.sleeping = self._core.sleeping
        return stats

    def _handle(self, identity: Identity, message: ToEngine) -> None:
        match message:
            case EngineRequest():
                self._add(identity, message)
            case Vocabulary():
                self._core.grammars.learn(message)
            case AbortRequests(request_ids):
                self._abort([name for name in request_ids if self._front_end_of.get(name) == identity])
            case AbortSequences(sequence_ids):
                own = [name for name in sequence_ids if self._front_end_of.get(name.split(".")[0]) == identity]
                self._core.abort_sequences(own)
                for name in own:
                    self._forget_ended(name.split(".")[0])
            case Call():
                self._port.send([(identity, self._call(message))])
            case Hello():
                self._told[identity] = 0.0
                self._port.send([(identity, Ready(self._config, self._stats(), self._record_path))])
            case Ping():
                raise AssertionError("the port answers pings")

    def _add(self, identity: Identity, request: EngineRequest) -> None:
        try:
            check_request(request, self._config)
            if request.request_id in self._front_end_of:
                raise RequestError(f"There is a request {request.request_id!r} already.")
            self._recorder.write(self._last_step, [request.request_id])
            self._core.add_request(request)
        except RequestError as error:
            logger.warning("a request was refused: %s", error)
            self._port.send([(identity, EngineOutputs(ending(request, FinishReason.ERROR, str(error))))])
            return
        if self._core.has_request(request.request_id):
            self._front_end_of[request.request_id] = identity
        else:
            # A replay in an engine with a shorter context, in which all its sequences are at their end.
            self._port.send([(identity, EngineOutputs(ending(request, FinishReason.LENGTH, None)))])

    def _abort(self, request_ids: list[str]) -> None:
        self._core.abort(request_ids)
        for request_id in request_ids:
            self._forget_ended(request_id)

    def _forget_ended(self, request_id: str) -> None:
        if not self._core.has_request(request_id):
            self._front_end_of.pop(request_id, None)

    def _drop_front_end(self, identity: Identity) -> None:
        """Nobody is left to read what its requests would bring."""
        self._told.pop(identity, None)
        self._abort([name for name, owner in self._front_end_of.items() if owner == identity])

    def _call(self, call: Call) -> FromEngine:
        utility = self._utilities.get(call.utility)
        if utility is None:
            return Reply(call.number, error=f"The engine has no utility {call.utility[:40]!r}.")
        try:
            return Reply(call.number, utility())
        except InterleafError as error:
            return Reply(call.number, error=str(error))

    def _sleep(self) -> None:
        self._core.sleep()
        gc.collect()
        self._tell_stats()

    def _wake_up(self) -> None:
        self._core.wake_up(self._make_executor)
        self._tell_stats()

    def _shut_down(self) -> None:
        self._stopping = True


def main() -> int:
    """Run an engine as the standard input says; returns the exit status."""
    start = read_start(sys.stdin.fileno())
    configure_logging(start.log)
    try:
        return serve(start, load)
    except Exception:
        # In the log's format, which the interpreter's own traceback would not be.
        logger.critical("the engine failed", exc_info=True)
        return 1


def load(start: wire.EngineStart) -> Loaded:
    """Open the checkpoint and load it.

    Raises:
        ConfigError, CheckpointError, InsufficientMemoryError: it cannot be used.
    """
    # Imported once the port is there, so that a parent that dies meanwhile is noticed.
    from interleaf.engine.client import open_draft, resolve_config
    from interleaf.loader.checkpoint import open_checkpoint
    from interleaf.worker.logits.custom import load_custom
    from interleaf.worker.worker import Worker

    checkpoint = open_checkpoint(start.args.model, start.args.revision)
    draft = open_draft(start.args)
    config = resolve_config(start.args, checkpoint, draft)
    logits_processors = load_custom(start.args.logits_processors)

    def make_executor() -> Executor:
        draft_tensors = {} if draft is None else draft.tensors
        # The parent is the front end (of several it is none, and at rest). Where there are cores besides the team's, it
        # finds one by itself.
        neighbour = os.getppid() if config.threads >= usable_cores() else 0
        return Worker(config, checkpoint.tensors, logits_processors, draft_tensors, neighbour)

    return Ready(config), EngineCore(config, make_executor(), RUN_SECONDS), make_executor


def serve(start: wire.EngineStart, load: Callable[[wire.EngineStart], Loaded]) -> int:
    """Load, then run the loop; where loading fails, tell so to whoever asks first.

    Returns:
        the exit status.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    _leave_ending_to_the_parent()
    port = Port(start.address, sys.stdin.fileno(), lambda: _end_without_parent(start))
    try:
        loaded = load(start)
    except InterleafError as error:
        [(asking, _), *_] = port.receive(block=True)
        port.send([(asking, StartFailure(type(error).__name__, str(error)))])
        port.close()
        return 1
    settle()
    EngineLoop(start, loaded, port).run()
    loaded[1].close()
    port.close()
    return 0


def read_start(descriptor: int) -> wire.EngineStart:
    """Read what to start, and nothing behind it."""
    [length] = wire.START_LENGTH.unpack(_read(descriptor, wire.START_LENGTH.size))
    return wire.decode_start(_read(descriptor, length))


def _read(descriptor: int, length: int) -> bytes:
    raw = b""
    while len(raw) < length:
        piece = os.read(descriptor, length - len(raw))
        if not piece:
            raise SystemExit("The parent ended before it said what to start.")
        raw += piece
    return raw


def _leave_ending_to_the_parent() -> None:
    """Signals that are sent to all processes of a service must not cut off what the parent still drains."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # A stopped process would not notice that its standard input ended: let it go on then.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)


def _end_without_parent(start: wire.EngineStart) -> None:
    """End at once, in the middle of a step if need be, and leave no files."""
    directory = Path(start.step_record).parent
    for path in (Path(start.address.removeprefix("ipc://")), *directory.glob("step*")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
