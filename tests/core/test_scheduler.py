import random
import time

import pytest

from interleaf.config import CacheConfig, SchedulerConfig
from interleaf.core.scheduler import Scheduler
from interleaf.errors import PromptTooLongError, RequestError
from interleaf.messages import EngineOutput, EngineRequest, FinishReason, StepOutput, TokenLogprobs
from interleaf.params import RequestOutputKind, SamplingParams
from tests.core.memory_worker import MemoryWorker, generate

SIZE = 4


class Rig:
    """A scheduler, a worker that checks its memory, and what was delivered."""

    def __init__(self, num_blocks=64, caching=True, **limits):
        limits = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 64} | limits
        self.scheduler = Scheduler(SchedulerConfig(**limits), CacheConfig(SIZE, num_blocks, caching))
        self.worker = MemoryWorker(num_blocks, SIZE)
        self.outputs: list[EngineOutput] = []

    def add(self, request_id, prompt, priority=0, resumed=None, pooling=None, **params):
        prompt = list(range(prompt)) if isinstance(prompt, int) else prompt
        params = SamplingParams(**({"seed": 0, "max_tokens": 8} | params))
        source = EngineRequest(
            request_id, prompt, params, priority=priority, resumed_token_ids=resumed, pooling=pooling
        )
        self.scheduler.add_request(source)
        return source

    def step(self):
        output = self.scheduler.schedule()
        self.outputs += self.scheduler.update(output, self.worker.execute(output))
        self.scheduler.check_invariants()
        return output

    def run(self):
        while self.scheduler.has_unfinished():
            assert self.step().total_num_scheduled_tokens > 0
        assert self.scheduler.stats().num_free_blocks == self.scheduler.stats().num_blocks
        return self.tokens()

    def tokens(self):
        tokens: dict[tuple[str, int], list[int]] = {}
        for output in self.outputs:
            tokens.setdefault((output.request_id, output.index), []).extend(output.new_token_ids)
        return tokens

    def reasons(self):
        return {(o.request_id, o.index): o.finish_reason for o in self.outputs if o.finish_reason is not None}


def expected(source, index=0, max_total=64):
    return generate(source, index, 50, max_total)[0]


def test_long_prompt_is_cut_to_the_budget_and_decodes_go_on():
    rig = Rig(max_num_batched_tokens=10, caching=False)
    rig.add("a", 3)
    rig.step()
    rig.add("b", 25)
    chunks = [rig.step().num_scheduled_tokens for _ in range(3)]
    assert chunks == [{"a": 1, "b": 9}, {"a": 1, "b": 9}, {"a": 1, "b": 7}]
    rig.run()


def test_threshold_leaves_budget_to_short_prompts():
    rig = Rig(max_num_batched_tokens=20, long_prefill_token_threshold=8, caching=False)
    rig.add("long", 30)
    rig.add("short", 5)
    assert rig.step().num_scheduled_tokens == {"long": 8, "short": 5}
    assert rig.step().num_scheduled_tokens == {"long": 8, "short": 1}


def test_without_chunking_a_prompt_waits_for_a_step_that_holds_it():
    rig = Rig(enable_chunked_prefill=False, caching=False, max_model_len=64)
    rig.add("a", 40)
    rig.add("b", 40)
    rig.add("c", 2)
    assert rig.step().num_scheduled_tokens == {"a": 40}
    assert rig.step().num_scheduled_tokens == {"a": 1, "b": 40, "c": 2}


def test_prefix_cache_hit_is_scheduled_and_counted():
    rig = Rig()
    rig.add("a", 10)
    rig.step()
    rig.add("b", 10)
    output = rig.step()
    assert output.num_scheduled_tokens == {"a": 1, "b": 2}
    assert output.new_requests[0].num_computed_tokens == 8
    assert {o.request_id: o.num_cached_tokens for o in rig.outputs} == {"a": 0, "b": 8}
    stats = rig.scheduler.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits, stats.num_prompt_tokens) == (20, 8, 20)


def test_prompt_is_admitted_only_beside_the_blocks_promised_to_others():
    rig = Rig(num_blocks=10, long_prefill_token_threshold=4, caching=False)
    rig.add("a", 24)
    rig.add("b", 20)
    assert list(rig.step().num_scheduled_tokens) == ["a"]
    rig.run()
    assert rig.scheduler.stats().num_preemptions == 0


def test_fcfs_preempts_the_last_and_resumes_it_first():
    rig = Rig(num_blocks=5, caching=False)
    sources = [rig.add("a", 7, max_tokens=9), rig.add("b", 8, max_tokens=4), rig.add("c", 3)]
    seen = [rig.step() for _ in range(3)]
    assert list(seen[0].num_scheduled_tokens) == ["a", "b", "c"]
    assert any(output.removed_sequence_ids == ["c"] for output in seen)
    tokens = rig.run()
    assert [tokens[source.request_id, 0] for source in sources] == [expected(source) for source in sources]
    assert rig.scheduler.stats().num_preemptions > 0
    assert rig.scheduler.stats().num_prompt_tokens == 7 + 8 + 3, "a resumed prompt is not counted again"


def test_nothing_is_admitted_in_a_step_that_preempts():
    rig = Rig(num_blocks=5, policy="priority", caching=False)
    rig.add("high", 7, priority=0)
    rig.add("low", 11, priority=5)
    rig.step()
    rig.step()
    rig.add("mid", 3, priority=1)
    output = rig.step()
    assert (output.removed_sequence_ids, list(output.num_scheduled_tokens)) == (["low"], ["high"])
    assert list(rig.step().num_scheduled_tokens) == ["high", "mid"]


def test_priority_decides_admission_and_preemption():
    rig = Rig(num_blocks=5, policy="priority", caching=False, max_num_seqs=2)
    rig.add("low", 7, priority=5, max_tokens=9)
    rig.add("mid", 7, priority=1, max_tokens=9)
    rig.add("high", 7, priority=0, max_tokens=9)
    assert list(rig.step().num_scheduled_tokens) == ["high", "mid"]
    removed = [rig.step().removed_sequence_ids for _ in range(6)]
    assert [ids for ids in removed if ids] == [["mid"]]
    rig.run()
    assert list(rig.reasons()) == [("high", 0), ("mid", 0), ("low", 0)]


def test_forks_share_the_prompt_and_copy_on_write():
    rig = Rig(caching=False)
    source = rig.add("r", 10, n=3)
    first = rig.step()
    assert first.num_scheduled_tokens == {"r": 10}
    assert [(new.sequence_id, new.fork_of) for new in first.new_requests] == [("r", None), ("r.1", "r"), ("r.2", "r")]
    assert len({tuple(new.block_ids) for new in first.new_requests}) == 1
    assert [new.seed for new in first.new_requests] == [0, 1, 2]
    second = rig.step()
    assert second.num_scheduled_tokens == {"r": 1, "r.1": 1, "r.2": 1}
    shared = first.new_requests[0].block_ids[2]
    assert [source for source, _ in second.block_copies] == [shared, shared]
    assert [update.sequence_id for update in second.block_table_updates] == ["r", "r.1"]
    tokens = rig.run()
    assert [tokens["r", index] for index in range(3)] == [expected(source, index) for index in range(3)]


def test_forks_wait_for_the_last_chunk_of_the_prompt():
    rig = Rig(max_num_batched_tokens=6)
    rig.add("r", 14, n=2)
    assert [len(rig.step().new_requests) for _ in range(3)] == [1, 0, 1]


def test_forks_without_a_seat_become_ordinary_requests():
    rig = Rig(max_num_seqs=2)
    source = rig.add("r", 10, n=4)
    assert [new.sequence_id for new in rig.step().new_requests] == ["r", "r.1"]
    assert rig.scheduler.stats().num_waiting == 2
    tokens = rig.run()
    assert [tokens["r", index] for index in range(4)] == [expected(source, index) for index in range(4)]
    assert {o.num_cached_tokens for o in rig.outputs if o.index > 1} == {8}


def test_four_samples_take_a_third_of_the_blocks_of_four_requests():
    def peak_blocks(count, n):
        rig = Rig(num_blocks=1000, max_model_len=1024, max_num_batched_tokens=4096, caching=False)
        for number in range(count):
            rig.add(str(number), 512, n=n, max_tokens=32)
        peak = 0
        while rig.scheduler.has_unfinished():
            assert rig.step().total_num_scheduled_tokens > 0
            peak = max(peak, 1000 - rig.scheduler.stats().num_free_blocks)
        return peak

    assert peak_blocks(1, n=4) < 0.35 * peak_blocks(4, n=1)


def test_aborted_parent_leaves_its_forks_alone():
    rig = Rig()
    source = rig.add("r", 10, n=3)
    output = rig.scheduler.schedule()
    rig.scheduler.abort_sequences(["r"])
    rig.outputs += rig.scheduler.update(output, rig.worker.execute(output))
    assert rig.step().removed_sequence_ids == ["r"]
    assert rig.run() == {("r", index): expected(source, index) for index in (1, 2)}


def test_parent_aborted_before_it_forked_leaves_ordinary_requests():
    rig = Rig(max_num_batched_tokens=6)
    source = rig.add("r", 10, n=3)
    rig.step()
    rig.scheduler.abort_sequences(["r"])
    assert rig.run() == {("r", index): expected(source, index) for index in (1, 2)}


def test_abort_frees_everything_and_is_idempotent():
    rig = Rig(max_num_seqs=2)
    rig.add("a", 10, n=3)
    rig.add("b", 10)
    rig.step()
    rig.scheduler.abort(["a", "a", "nobody"])
    rig.scheduler.abort(["a"])
    assert rig.step().removed_sequence_ids == ["a", "a.1"]
    rig.scheduler.abort(["b"])
    assert not rig.scheduler.has_unfinished()
    rig.scheduler.check_invariants()
    assert rig.scheduler.stats().num_free_blocks == 64


def test_never_admitted_sequences_are_not_reported_as_removed():
    rig = Rig(max_num_seqs=1)
    rig.add("a", 3)
    rig.add("b", 3)
    rig.step()
    rig.scheduler.abort(["b"])
    assert rig.step().removed_sequence_ids == []


def test_speculated_tokens_behind_a_stop_are_cut():
    rig = Rig()
    rig.add("r", 3, stop_token_ids=[9], logprobs=0)
    output = rig.scheduler.schedule()
    entries = [TokenLogprobs([token], [0.0], 1) for token in (5, 9, 6)]
    (news,) = rig.scheduler.update(output, StepOutput(output.step, {"r": [5, 9, 6]}, {"r": entries}))
    assert (news.new_token_ids, news.finish_reason, news.stop_reason) == ([5, 9], FinishReason.STOP, 9)
    assert news.logprobs == entries[:2]


def test_several_tokens_at_once_are_caught_up_with():
    rig = Rig()
    rig.add("r", 3)
    output = rig.scheduler.schedule()
    rig.scheduler.update(output, StepOutput(output.step, {"r": [5, 6, 7]}))
    assert rig.scheduler.schedule().num_scheduled_tokens == {"r": 3}


def test_sequence_that_outgrows_the_pool_ends_with_length():
    rig = Rig(num_blocks=3, max_num_seqs=2)
    sources = [rig.add("a", 5, max_tokens=None), rig.add("b", 5, max_tokens=None, seed=1)]
    tokens = rig.run()
    assert [tokens[source.request_id, 0] for source in sources] == [expected(source, 0, 13) for source in sources]
    assert set(rig.reasons().values()) == {FinishReason.LENGTH}


def test_context_ends_at_max_model_len():
    rig = Rig(max_model_len=12)
    rig.add("a", 5, max_tokens=None)
    assert len(rig.run()["a", 0]) == 7


@pytest.mark.parametrize(
    "num_blocks, max_model_len, flag", [(64, 16, "--max-model-len"), (4, 64, "--kv-cache-memory-bytes")]
)
def test_prompts_that_can_never_fit_are_refused(num_blocks, max_model_len, flag):
    rig = Rig(num_blocks=num_blocks, max_model_len=max_model_len)
    rig.add("fits", 15)
    with pytest.raises(PromptTooLongError, match=flag):
        rig.add("too long", 16)
    with pytest.raises(RequestError, match="empty"):
        rig.add("empty", [])
    with pytest.raises(RequestError, match="n=2"):
        rig.add("mismatch", 3, n=2, resumed=[[1]])
    rig.run()


def test_prompt_logprobs_are_gathered_over_chunks_and_skip_the_cache():
    rig = Rig(max_num_batched_tokens=6)
    rig.add("a", 14)
    rig.run()
    rig.add("b", 14, prompt_logprobs=0, n=2)
    rig.run()
    delivered = [(o.index, o.prompt_logprobs) for o in rig.outputs if o.prompt_logprobs is not None]
    assert [(index, [entry.token_ids[0] for entry in entries]) for index, entries in delivered] == [
        (0, list(range(1, 14)))
    ]
    assert next(o for o in rig.outputs if o.request_id == "b").num_cached_tokens == 0


def test_prompt_logprobs_that_are_there_already_are_ignored():
    rig = Rig(max_num_batched_tokens=4)
    rig.add("r", 7, prompt_logprobs=0)
    entries = [TokenLogprobs([position], [0.0], 1) for position in range(7)]
    output = rig.scheduler.schedule()
    rig.scheduler.update(output, StepOutput(output.step, {}, {}, {"r": (1, entries[1:5])}))
    output = rig.scheduler.schedule()
    (news,) = rig.scheduler.update(output, StepOutput(output.step, {"r": [1]}, {}, {"r": (3, entries[3:])}))
    assert news.prompt_logprobs == entries[1:]


@pytest.mark.parametrize("caching", [True, False])
def test_who_shares_a_prefix_waits_until_it_is_computed(caching):
    rig = Rig(caching=caching, max_num_batched_tokens=12)
    prefix = list(range(20))
    sources = [rig.add(str(i), [*prefix, 30 + i, 31 + i], max_tokens=3) for i in range(3)]
    sources.append(rig.add("other", [40, 41], max_tokens=3))
    started = [len(rig.step().new_requests) for _ in range(4)]
    # The first computes 12 tokens, then 10; who shares nothing keeps its place behind those who wait for them.
    assert started == ([1, 0, 3, 0] if caching else [1, 1, 0, 1])
    assert rig.run() == {(source.request_id, 0): expected(source) for source in sources}
    cached = {output.request_id: output.num_cached_tokens for output in rig.outputs}
    assert cached == {"0": 0, "1": 20 * caching, "2": 20 * caching, "other": 0}


@pytest.mark.parametrize(
    ("params", "sizes"),
    [
        ({}, [1, 16, 16, 7]),
        ({"max_tokens": 17}, [1, 16]),
        ({"max_tokens": 1}, [1]),
        ({"n": 2, "max_tokens": 20}, [1, 16, 3]),
        ({"stop": "x"}, [1] * 40),
        ({"logprobs": 0}, [1] * 40),
        ({"output_kind": RequestOutputKind.DELTA}, [1] * 40),
    ],
)
def test_who_waits_for_the_end_is_told_late(params, sizes):
    rig = Rig()
    source = rig.add(
        "r", 5, **{"output_kind": RequestOutputKind.FINAL_ONLY, "max_tokens": 40, "ignore_eos": True} | params
    )
    tokens = rig.run()
    for index in range(source.params.n):
        news = [output for output in rig.outputs if output.index == index]
        assert [len(output.new_token_ids) for output in news] == sizes
        assert [output.finished for output in news] == [False] * (len(sizes) - 1) + [True]
        assert tokens["r", index] == expected(source, index)


def test_a_replay_told_late_goes_on_behind_what_was_told():
    rig = Rig()
    params = {"output_kind": RequestOutputKind.FINAL_ONLY, "max_tokens": 40, "ignore_eos": True}
    whole = expected(rig.add("whole", 5, **params))
    rig.add("r", 5, resumed=[whole[:17]], **params)
    assert rig.run()["r", 0] == whole[17:]
    assert [len(output.new_token_ids) for output in rig.outputs if output.request_id == "r"] == [16, 7]


def test_replay_goes_on_behind_delivered_tokens():
    rig = Rig()
    source = rig.add("r", 6, n=3, max_tokens=8)
    whole = [expected(source, index) for index in range(3)]
    again = Rig()
    again.add("r", 6, n=3, max_tokens=8, resumed=[whole[0][:3], [], whole[2]])
    # The second waits a step for the prompt's full block, which the first computes.
    new_requests = [*again.step().new_requests, *again.step().new_requests]
    assert [(new.sequence_id, new.fork_of) for new in new_requests] == [("r", None), ("r.1", None)]
    assert again.run() == {("r", 0): whole[0][3:], ("r", 1): whole[1]}


def test_wide_steps_are_cheap():
    """Well above the measured 0.3 ms, so that only a change of the kind of work is caught."""
    rig = Rig(num_blocks=8000, max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=512)
    rng = random.Random(0)
    for number in range(256):
        rig.add(str(number), [rng.randrange(1000) for _ in range(20)], max_tokens=None)
    scheduler, seconds = rig.scheduler, []
    for _ in range(40):
        start = time.perf_counter()
        output = scheduler.schedule()
        step_output = StepOutput(output.step, {sequence_id: [1] for sequence_id in output.num_scheduled_tokens})
        scheduler.update(output, step_output)
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[len(seconds) // 2] < 2e-3


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pooling_ends_with_the_prompt_and_samples_nothing(pooling):
    rig = Rig(max_num_batched_tokens=10)
    rig.add("a", 25, pooling=pooling)
    rig.add("b", 3, max_tokens=2)
    rig.run()
    [output] = [output for output in rig.outputs if output.request_id == "a"]
    assert (output.embedding, output.new_token_ids, output.finish_reason) == ([25.0], [], FinishReason.STOP)
    assert rig.scheduler.stats().num_generation_tokens == 2


def test_only_the_mean_reads_no_prefix_cache_and_both_fill_it():
    rig = Rig()
    for request_id, pooling in (("a", "mean"), ("b", "mean"), ("c", "last"), ("d", None)):
        rig.add(request_id, 10, pooling=pooling, max_tokens=1)
        rig.run()
    assert [output.num_cached_tokens for output in rig.outputs] == [0, 0, 8, 8]


def test_a_pooled_prompt_may_fill_context_and_cache():
    for limits in ({"max_model_len": 20}, {"num_blocks": 5}):
        rig = Rig(**limits)
        rig.add("a", 20, pooling="mean")
        rig.run()
        assert rig.reasons() == {("a", 0): FinishReason.STOP}
        for length, pooling in ((21, "mean"), (20, None)):
            with pytest.raises(PromptTooLongError):
                rig.add("b", length, pooling=pooling)
