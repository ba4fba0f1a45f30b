"""Sleeping and waking, on the worker that checks its memory."""

from __future__ import annotations

from interleaf.config import CacheConfig, SchedulerConfig
from interleaf.engine.core import EngineCore
from interleaf.messages import EngineRequest
from interleaf.params import SamplingParams
from tests.core.memory_worker import MemoryWorker, generate
from tests.fake_engine import engine_config

BLOCKS, SIZE = 32, 16


class Worker(MemoryWorker):
    kernel_seconds = 1.0
    closed = False

    def __init__(self) -> None:
        super().__init__(BLOCKS, SIZE)

    def execute(self, output):  # type: ignore[no-untyped-def]
        # As the real one, a worker that was made anew knows nothing of what it is to forget.
        output.removed_sequence_ids = [name for name in output.removed_sequence_ids if name in self.sequences]
        return super().execute(output)

    def close(self) -> None:
        self.closed = True


def core_of(worker: Worker) -> EngineCore:
    config = engine_config(
        cache=CacheConfig(SIZE, BLOCKS, True),
        scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64),
    )
    return EngineCore(config, worker)


def request(name: str, **params: int) -> EngineRequest:
    return EngineRequest(name, list(range(20)), SamplingParams(seed=3, max_tokens=30, **params))


def test_requests_that_ran_when_it_fell_asleep_go_on_with_the_same_tokens() -> None:
    first, second = Worker(), Worker()
    core = core_of(first)
    source = request("a", n=2)
    core.add_request(source)
    outputs = [output for _ in range(5) for output in core.step().outputs]
    core.sleep()
    assert first.closed and core.sleeping
    assert core.stats().num_free_blocks == BLOCKS and not any(core.block_map())
    core.add_request(request("b"))
    core.wake_up(lambda: second)
    core.wake_up(Worker)
    assert not core.sleeping
    while core.has_unfinished():
        outputs += core.step().outputs
    for index in (0, 1):
        tokens = [
            token for one in outputs if (one.request_id, one.index) == ("a", index) for token in one.new_token_ids
        ]
        assert tokens == generate(source, index, 50, 64)[0]
    assert core.step_times().kernels == 2.0


def test_the_block_map_tells_free_cached_held_and_shared() -> None:
    core = core_of(Worker())
    assert core.block_map() == bytes(BLOCKS)
    core.add_request(request("a", n=2))
    core.step()
    blocks = core.block_map()
    assert sorted(blocks) == [0] * (BLOCKS - 2) + [3, 3]
    core.step()
    assert sorted(core.block_map()) == [0] * (BLOCKS - 3) + [2, 2, 3]
    core.abort(["a"])
    assert sorted(core.block_map()) == [0] * (BLOCKS - 1) + [1]


def test_the_time_of_scheduling_comes_with_the_first_token_only() -> None:
    core = core_of(Worker())
    core.add_request(request("a"))
    first, second = core.step().outputs, core.step().outputs
    assert first[0].scheduled_time > 0 and second[0].scheduled_time == 0


def test_what_a_replay_finds_cached_is_not_told() -> None:
    core = core_of(Worker())
    core.add_request(request("a"))
    tokens = core.step().outputs[0].new_token_ids
    replay = request("b")
    replay.resumed_token_ids = [tokens]
    core.add_request(replay)
    assert [output.num_cached_tokens for output in core.step().outputs] == [0, 0]
    assert core.has_request("b") and not core.has_request("c")
