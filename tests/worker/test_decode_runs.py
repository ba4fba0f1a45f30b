"""Runs of decode steps give the tokens that single steps give, and end where a sequence may end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interleaf.config import EngineArgs, resolve
from interleaf.engine.core import EngineCore
from interleaf.loader.checkpoint import open_checkpoint
from interleaf.messages import EngineRequest, SchedulerOutput, StepOutput
from interleaf.params import RequestOutputKind, SamplingParams
from tests.loader import tiny
from tests.worker.test_runner import OpsExecutor

EOS = list(range(60))


class CountingExecutor(OpsExecutor):
    """Notes how many steps were scheduled as one, and how many of these were done."""

    def execute(self, scheduled: SchedulerOutput) -> StepOutput:
        output = super().execute(scheduled)
        self.runs = [*getattr(self, "runs", []), (scheduled.num_decode_steps, output.num_decode_steps)]
        return output


def generate(
    path: Path, run_seconds: float, reference: bool = False, **more: float
) -> tuple[dict[tuple[str, int], list[int]], list[tuple[int, int]]]:
    """Tokens by sequence, and the runs."""
    with open_checkpoint(str(path)) as checkpoint:
        args = EngineArgs(dtype="float32", max_num_batched_tokens=64, max_num_seqs=8, max_model_len=128)
        config = resolve(args, "tiny", checkpoint.hf_config, 0, 1 << 22)
    executor = CountingExecutor(config, path, reference)
    core = EngineCore(config, executor, run_seconds)
    rng = np.random.default_rng(1)
    for i, length in enumerate((1, 15, 16, 40)):
        params = SamplingParams(
            n=1 + i % 2,
            temperature=0.0 if i == 1 else 0.8,
            seed=i,
            max_tokens=(5, 60, 33, 50)[i],
            min_tokens=3,
            ignore_eos=i == 3,
            stop_token_ids=[77] if i == 3 else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **more,
        )
        core.add_request(EngineRequest(f"r{i}", rng.integers(60, 384, length).tolist(), params, EOS))
    found: dict[tuple[str, int], list[int]] = {}
    while core.has_unfinished():
        for output in core.step().outputs:
            found.setdefault((output.request_id, output.index), []).extend(output.new_token_ids)
    core._scheduler.check_invariants()
    assert core.stats().num_free_blocks == config.cache.num_blocks
    return found, executor.runs


@pytest.mark.parametrize("more", [{}, {"repetition_penalty": 1.4, "min_p": 0.01}], ids=["plain", "penalized"])
@pytest.mark.parametrize("reference", [False, True], ids=["cpu", "reference"])
def test_runs_give_the_tokens_of_single_steps(tmp_path: Path, more: dict[str, float], reference: bool) -> None:
    path = tiny.tiny_qwen3(tmp_path / "model", num_hidden_layers=2)
    single, steps = generate(path, 0.0, **more)
    assert all(run == (1, 1) for run in steps)
    assert len({len(tokens) for tokens in single.values()}) > 2, "sequences end in different steps"
    together, runs = generate(path, 1e9, reference, **more)
    assert together == single
    assert max(done for _, done in runs) > 4
    assert any(1 <= done < wanted for wanted, done in runs), "a run ends where a sequence may end"
    assert len(runs) < len(steps) / 2 and sum(done for _, done in runs) == len(steps)
