"""The engine's loop body: schedule, execute, update. It alone joins the scheduler and the worker."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from interleaf.config import EngineConfig
from interleaf.core.scheduler import Scheduler
from interleaf.messages import EngineOutputs, EngineRequest, SchedulerOutput, SchedulerStats, StepOutput


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
    def __init__(self, config: EngineConfig, executor: Executor) -> None:
        self._scheduler = Scheduler(config.scheduler, config.cache)
        self._executor = executor
        self._times = StepTimes()

    def add_request(self, request: EngineRequest) -> None:
        """
        Raises:
            RequestError: the request can never run here.
        """
        self._scheduler.add_request(request)

    def abort(self, request_ids: list[str]) -> None:
        """End requests; unknown or finished ones are ignored."""
        self._scheduler.abort(request_ids)

    def abort_sequences(self, sequence_ids: list[str]) -> None:
        """End single sequences of requests with several."""
        self._scheduler.abort_sequences(sequence_ids)

    def has_unfinished(self) -> bool:
        return self._scheduler.has_unfinished()

    def step(self) -> EngineOutputs:
        """Compute the next tokens of whatever can run, and tell the news."""
        begin = time.perf_counter()
        scheduled = self._scheduler.schedule()
        planned = time.perf_counter()
        if scheduled.total_num_scheduled_tokens == 0:
            return EngineOutputs(stats=self._scheduler.stats())
        result = self._executor.execute(scheduled)
        computed = time.perf_counter()
        outputs = self._scheduler.update(scheduled, result)
        self._times.num_steps += 1
        self._times.schedule += planned - begin
        self._times.execute += computed - planned
        self._times.update += time.perf_counter() - computed
        return EngineOutputs(outputs, self._scheduler.stats())

    def stats(self) -> SchedulerStats:
        return self._scheduler.stats()

    def step_times(self) -> StepTimes:
        self._times.kernels = self._executor.kernel_seconds
        return self._times

    def reset_prefix_cache(self) -> bool:
        """Forget cached prefixes; False if sequences are using blocks."""
        return self._scheduler.reset_prefix_cache()

    def close(self) -> None:
        self._executor.close()
