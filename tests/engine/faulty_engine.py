"""An engine process with a worker that dies, hangs or fails of certain prompts. Run with `-m`, as the real one is."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from interleaf.engine import process, wire
from interleaf.engine.core import EngineCore, Executor
from interleaf.errors import ConfigError
from interleaf.messages import SchedulerOutput, StepOutput

MODULE = "tests.engine.faulty_engine"
ROOT = str(Path(__file__).parents[2])
"""What must be in PYTHONPATH for it to be found."""

DEADLY, DEADLY_LATER, HANGING, FAILING = 380, 381, 382, 383
"""Prompt tokens: kill the process as soon as the sequence is computed, at its fifth token; hang; raise."""
DEADLY_LENGTH = 5
UNLOADABLE_SEED = 13
"""An engine with this seed cannot start."""
DYING_SEED = 14
"""An engine with this seed dies while it starts."""
STEP_SECONDS = 0.003


class FaultyWorker:
    """The real worker, but slow, and with the faults that prompts ask for."""

    def __init__(self, worker: Executor) -> None:
        self._worker = worker
        self._faults: dict[str, tuple[int, int]] = {}

    @property
    def kernel_seconds(self) -> float:
        return self._worker.kernel_seconds

    def execute(self, scheduled: SchedulerOutput) -> StepOutput:
        for new in scheduled.new_requests:
            for fault in (DEADLY, DEADLY_LATER, HANGING, FAILING):
                if fault in new.token_ids[: new.num_prompt_tokens]:
                    self._faults[new.sequence_id] = fault, len(new.token_ids) - new.num_prompt_tokens
        for sequence_id in scheduled.num_scheduled_tokens:
            self._maybe_fail(sequence_id)
        time.sleep(STEP_SECONDS)
        return self._worker.execute(scheduled)

    def _maybe_fail(self, sequence_id: str) -> None:
        fault, length = self._faults.get(sequence_id, (0, 0))
        if fault == DEADLY or (fault == DEADLY_LATER and length >= DEADLY_LENGTH):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == HANGING:
            time.sleep(1000)
        if fault == FAILING:
            raise ValueError("a bug")
        if fault:
            self._faults[sequence_id] = fault, length + 1

    def close(self) -> None:
        self._worker.close()


def load(start: wire.EngineStart) -> process.Loaded:
    if start.args.seed == UNLOADABLE_SEED:
        raise ConfigError("This engine does not want to start.")
    if start.args.seed == DYING_SEED:
        os._exit(3)
    ready, core, make_executor = process.load(start)
    core.close()

    def make_faulty() -> Executor:
        return FaultyWorker(make_executor())

    return ready, EngineCore(ready.config, make_faulty()), make_faulty


if __name__ == "__main__":
    sys.exit(process.serve(process.read_start(sys.stdin.fileno()), load))
