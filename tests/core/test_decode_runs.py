"""When decode steps are done as one, and what becomes of a run that ends early."""

from __future__ import annotations

import pytest

from interleaf.config import CacheConfig, SchedulerConfig
from interleaf.core.request import Request
from interleaf.core.scheduler import Scheduler
from interleaf.messages import EngineRequest, SchedulerOutput, StepOutput
from interleaf.params import RequestOutputKind, SamplingParams

EOS = 9
SIZE = 4


class Rig:
    """A scheduler and the tokens that a worker would bring: 1, unless told."""

    def __init__(self, num_blocks: int = 16, max_num_seqs: int = 4, budget: int = 64) -> None:
        config = SchedulerConfig(max_num_seqs, budget, 64, True, 0)
        self.scheduler = Scheduler(config, CacheConfig(SIZE, num_blocks, True))

    def add(
        self, name: str, length: int = 6, max_tokens: int = 40, resumed: list[int] | None = None, **params: object
    ) -> None:
        settings = {"output_kind": RequestOutputKind.FINAL_ONLY, **params}
        sampling = SamplingParams(seed=0, max_tokens=max_tokens, **settings)  # type: ignore[arg-type]
        prompt = [ord(name), *range(2, length + 1)]
        resumed_token_ids = None if resumed is None else [resumed]
        self.scheduler.add_request(EngineRequest(name, prompt, sampling, [EOS], resumed_token_ids=resumed_token_ids))

    def schedule(self, longest: int = 8) -> SchedulerOutput:
        return self.scheduler.schedule(longest)

    def bring(self, output: SchedulerOutput, num_steps: int | None = None, last: dict[str, int] | None = None) -> None:
        """Let the worker do `num_steps` of a run, which end with the tokens `last`."""
        count = num_steps or output.num_decode_steps
        tokens = {name: [1] * (count - 1) + [(last or {}).get(name, 1)] for name in output.num_scheduled_tokens}
        self.scheduler.update(output, StepOutput(output.step, tokens, num_decode_steps=count))

    def request(self, name: str) -> Request:
        return self.scheduler._sequences.by_id[name]


def test_a_prompt_is_no_run_and_what_follows_is() -> None:
    rig = Rig()
    rig.add("a")
    first = rig.schedule()
    assert first.num_decode_steps == 1 and first.num_scheduled_tokens == {"a": 6}
    rig.bring(first)
    run = rig.schedule()
    assert run.num_decode_steps == 8 and run.num_scheduled_tokens == {"a": 1}
    # Tokens 6 to 13 are written, in blocks 1 to 3.
    assert [(update.start, len(update.block_ids)) for update in run.block_table_updates] == [(2, 2)]
    rig.bring(run)
    assert rig.request("a").num_computed_tokens == 14
    assert rig.schedule().num_decode_steps == 8


@pytest.mark.parametrize(
    "params",
    [{"output_kind": RequestOutputKind.DELTA}, {"logprobs": 0}, {"stop": "x"}],
    ids=["stream", "logprobs", "stop"],
)
def test_nobody_who_waits_for_tokens_waits_for_a_run(params: dict[str, object]) -> None:
    rig = Rig()
    rig.add("a")
    rig.add("b", **params)
    rig.bring(rig.schedule())
    assert rig.schedule().num_decode_steps == 1


def test_what_is_computed_again_token_by_token_is_no_run() -> None:
    rig = Rig(budget=1)
    rig.add("a", length=2, resumed=[1, 1])
    for _ in range(3):
        step = rig.schedule()
        assert step.num_decode_steps == 1 and step.num_scheduled_tokens == {"a": 1}
        rig.scheduler.update(step, StepOutput(step.step, {}))
    last = rig.schedule()
    assert rig.request("a").num_computed_tokens == 3 and last.num_decode_steps == 8


def test_a_step_without_sequences_is_no_run() -> None:
    rig = Rig()
    assert rig.schedule().num_decode_steps == 1
    rig.add("a")
    rig.bring(rig.schedule())
    rig.scheduler.abort(["a"])
    removal = rig.schedule()
    assert removal.removed_sequence_ids == ["a"] and removal.num_decode_steps == 1


def test_no_run_while_somebody_waits_for_a_seat() -> None:
    rig = Rig(max_num_seqs=1)
    rig.add("a")
    rig.add("b")
    rig.bring(rig.schedule())
    assert rig.schedule().num_decode_steps == 1


def test_a_run_is_as_long_as_the_shortest_sequence_has_room() -> None:
    rig = Rig()
    rig.add("a")
    rig.add("b", max_tokens=4)
    rig.bring(rig.schedule())
    run = rig.schedule()
    assert run.num_decode_steps == 3
    rig.bring(run)
    assert not rig.scheduler.has_request("b") and rig.scheduler.has_request("a")


def test_nobody_is_preempted_for_a_run() -> None:
    rig = Rig(num_blocks=5)
    rig.add("a")
    rig.add("b")
    rig.bring(rig.schedule())
    assert rig.schedule().num_decode_steps == 1, "a run of 8 would need two blocks for each"
    assert rig.scheduler.stats().num_preemptions == 0


def test_blocks_of_steps_that_were_not_done_go_back() -> None:
    rig = Rig()
    rig.add("a")
    rig.add("b")
    rig.bring(rig.schedule())
    run = rig.schedule()
    assert len(rig.request("a").block_ids) == 4
    rig.bring(run, num_steps=1, last={"b": EOS})
    assert len(rig.request("a").block_ids) == 2
    assert rig.request("a").num_computed_tokens == 7
    assert not rig.scheduler.has_request("b")
    rig.scheduler.check_invariants()
