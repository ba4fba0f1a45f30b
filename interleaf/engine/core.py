"""The verbs of the engine's loop: schedule, execute, update. It alone joins the scheduler and the worker.

A loop in this process (`InProcessClient`) calls `step`, which is the three of them. A loop in a
process of its own (`interleaf.engine.process`) has two more: receive before them, send after.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from interleaf.config import EngineConfig
from interleaf.core.scheduler import Scheduler
from interleaf.core.token_checks import StepGrammars, TokenChecker
from interleaf.engine.grammars import GrammarQueue
from interleaf.errors import GrammarError, RequestError
from interleaf.messages import (
    EngineOutput,
    EngineOutputs,
    EngineRequest,
    FinishReason,
    SchedulerOutput,
    SchedulerStats,
    StepOutput,
)


class Executor(Protocol):
    """What runs steps: a worker in this process, later workers in others."""

    @property
    def kernel_seconds(self) -> float: ...

    def execute(self, scheduled: SchedulerOutput) -> StepOutput: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class StepTimes:
    """Seconds since the start, by where they went; `kernels` is a part of `execute`."""

    num_steps: int = 0
    schedule: float = 0.0
    execute: float = 0.0
    update: float = 0.0
    kernels: float = 0.0


class EngineCore:
    """
    Args:
        run_seconds: how long a run of decode steps (see `DecodeRuns`) may take: whatever comes meanwhile waits.
    """

    def __init__(self, config: EngineConfig, executor: Executor, run_seconds: float = 0.0) -> None:
        self._scheduler = Scheduler(config.scheduler, config.cache)
        self.grammars = GrammarQueue()
        self._checker = TokenChecker(config.threads)
        self._executor: Executor | None = executor
        self._times = StepTimes()
        self._run_seconds = run_seconds if config.speculative is None else 0.0
        self._longest_run = 1
        self._admitted: dict[str, float] = {}
        """Sequence -> when it was admitted, until its next token tells so."""

    def add_request(self, request: EngineRequest) -> None:
        """
        Raises:
            RequestError: the request can never run here.
        """
        grammar = None
        if request.grammar is not None:
            grammar = self.grammars.add(request)
            if grammar is None:
                return
        self._scheduler.add_request(request, grammar)

    def admit_compiled(self, block: bool = False) -> list[EngineOutput]:
        """Queue the requests whose grammar is compiled by now; return the ends of those that cannot run.

        Args:
            block: sleep until there is such a request, if any waits for its grammar.
        """
        refused = []
        for request, grammar in self.grammars.take_ready(block):
            try:
                if isinstance(grammar, GrammarError):
                    raise grammar
                self._scheduler.add_request(request, grammar)
            except RequestError as error:
                refused += ending(request, FinishReason.ERROR, str(error))
        return refused

    def abort(self, request_ids: list[str]) -> None:
        """End requests; unknown or finished ones are ignored."""
        self.grammars.abort(request_ids)
        self._scheduler.abort(request_ids)

    def abort_sequences(self, sequence_ids: list[str]) -> None:
        """End single sequences of requests with several."""
        self._scheduler.abort_sequences(sequence_ids)

    def has_request(self, request_id: str) -> bool:
        """Whether any sequence of the request is unfinished."""
        return self._scheduler.has_request(request_id) or request_id in self.grammars

    def has_unfinished(self) -> bool:
        return self._scheduler.has_unfinished() or bool(self.grammars)

    def has_work(self) -> bool:
        """Whether there is anything to do now: not if all that is left waits for grammars."""
        return self._scheduler.has_unfinished() or self.grammars.has_ready

    def step(self) -> EngineOutputs:
        """Compute the next tokens of whatever can run, and tell the news."""
        refused = self.admit_compiled(block=not self._scheduler.has_unfinished()) if self.grammars else []
        scheduled = self.schedule()
        if scheduled.total_num_scheduled_tokens == 0:
            return EngineOutputs(refused)
        news = self.update(scheduled, self.execute(scheduled))
        news.outputs += refused
        return news

    def schedule(self) -> SchedulerOutput:
        """Choose what the next step computes."""
        begin = time.perf_counter()
        scheduled = self._scheduler.schedule(self._longest_run)
        for sequence_id in scheduled.removed_sequence_ids:
            self._admitted.pop(sequence_id, None)
        held = self._scheduler.held_sequences(scheduled)
        if held:
            scheduled.grammars = StepGrammars(held, self._checker)
        if scheduled.new_requests:
            self._admitted |= dict.fromkeys((new.sequence_id for new in scheduled.new_requests), time.monotonic())
        self._times.schedule += time.perf_counter() - begin
        return scheduled

    def execute(self, scheduled: SchedulerOutput) -> StepOutput:
        """Compute it."""
        assert self._executor is not None, "nothing is computed while the engine sleeps"
        begin = time.perf_counter()
        result = self._executor.execute(scheduled)
        seconds = time.perf_counter() - begin
        self._longest_run = max(1, int(self._run_seconds * result.num_decode_steps / seconds))
        self._times.execute += seconds
        return result

    def update(self, scheduled: SchedulerOutput, result: StepOutput) -> EngineOutputs:
        """Take in what was computed, and tell the news."""
        begin = time.perf_counter()
        outputs = self._scheduler.update(scheduled, result)
        if self._admitted:
            for output in outputs:
                name = output.request_id if output.index == 0 else f"{output.request_id}.{output.index}"
                output.scheduled_time = self._admitted.pop(name, 0.0)
        self._times.num_steps += result.num_decode_steps
        self._times.update += time.perf_counter() - begin
        num_tokens = scheduled.total_num_scheduled_tokens * result.num_decode_steps
        return EngineOutputs(outputs, None, scheduled.step, num_tokens)

    @property
    def sleeping(self) -> bool:
        """Whether weights and KV cache are gone until `wake_up`."""
        return self._executor is None

    def sleep(self) -> None:
        """Give back the memory of weights and KV cache; running requests wait, and are recomputed afterwards."""
        if self._executor is not None:
            self._times.kernels += self._executor.kernel_seconds
            self._scheduler.suspend()
            self._executor.close()
            self._executor = None

    def wake_up(self, make_executor: Callable[[], Executor]) -> None:
        """Load again after `sleep`; does nothing when awake."""
        if self._executor is None:
            self._executor = make_executor()

    def stats(self, slots: bool = True) -> SchedulerStats:
        """See `Scheduler.stats`."""
        stats = self._scheduler.stats(slots)
        stats.num_waiting += len(self.grammars)
        return stats

    def step_times(self) -> StepTimes:
        """Where the time went since the start."""
        times = replace(self._times)
        if self._executor is not None:
            times.kernels += self._executor.kernel_seconds
        return times

    def block_map(self) -> bytes:
        """One byte a block: 0 free, 1 free with cached contents, 2 held once, 3 shared."""
        return self._scheduler.block_map()

    def reset_prefix_cache(self) -> bool:
        """Forget cached prefixes; False if sequences are using blocks."""
        return self._scheduler.reset_prefix_cache()

    def close(self) -> None:
        self.grammars.close()
        if self._executor is not None:
            self._executor.close()
            self._executor = None


def ending(request: EngineRequest, reason: FinishReason, error: str | None) -> list[EngineOutput]:
    """The end of a request that is not computed."""
    return [
        EngineOutput(request.request_id, index, [], finish_reason=reason, error=error)
        for index in range(request.params.n)
    ]
