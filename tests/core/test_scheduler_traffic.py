"""Random traffic against a worker that checks every context it reads, and a naive oracle."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from interleaf.cache_layout import CacheLayout
from interleaf.config import CacheConfig, SchedulerConfig
from interleaf.core.scheduler import Scheduler
from interleaf.errors import ParameterError, PromptTooLongError
from interleaf.messages import EngineOutput, EngineRequest, FinishReason
from interleaf.params import BeamSettings, RequestOutputKind, SamplingParams
from tests.core.memory_worker import MemoryWorker, generate, search

BLOCK_SIZE = 4
VOCAB_SIZE = 12
EOS, STOP_TOKEN = 0, 1
MAX_MODEL_LEN = 40
PREFIXES = [[], [3] * 8, [3] * 8 + [4] * 5, [5, 6, 7]]


@dataclass
class Client:
    """What the frontend would know of a request."""

    source: EngineRequest
    tokens: list[list[int]]
    reasons: dict[int, FinishReason] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    prompt_logprobs: list[int] | None = None

    def receive(self, output: EngineOutput) -> None:
        assert output.index not in self.gone and output.index not in self.reasons
        self.tokens[output.index] += output.new_token_ids
        if self.source.params.logprobs is not None and output.new_token_ids:
            assert [entry.token_ids[0] for entry in output.logprobs] == output.new_token_ids
        if output.prompt_logprobs is not None:
            assert self.prompt_logprobs is None and output.index == 0
            self.prompt_logprobs = [entry.token_ids[0] for entry in output.prompt_logprobs]
        if output.finish_reason is not None:
            self.reasons[output.index] = output.finish_reason
            assert output.stop_reason in (None, STOP_TOKEN)

    @property
    def unfinished(self) -> list[int]:
        return [i for i in range(self.source.params.n) if i not in self.reasons and i not in self.gone]


class Traffic(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(3, 20),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(1, 24),
        threshold=st.sampled_from([0, 0, 3]),
        chunked=st.booleans(),
        caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        max_drafts=st.sampled_from([0, 0, 1, 6]),
        windows=st.sampled_from([(0,), (0,), (6,), (0, 5), (0, 0, 7, 7, 3), (2, 9)]),
        longest_run=st.sampled_from([1, 2, 5, 100]),
    )
    def start(
        self, num_blocks, max_num_seqs, budget, threshold, chunked, caching, policy, max_drafts, windows, longest_run
    ):
        budget = budget if chunked else MAX_MODEL_LEN
        self.scheduler_config = SchedulerConfig(max_num_seqs, budget, MAX_MODEL_LEN, chunked, threshold, policy)
        layout = CacheLayout(windows, (), min(budget, (threshold if chunked else 0) or budget))
        self.cache_config = CacheConfig(BLOCK_SIZE, num_blocks * len(windows), caching, layout)
        self.max_total = min(MAX_MODEL_LEN, self.cache_config.num_slots + 1)
        self.clients: dict[str, Client] = {}
        self.max_drafts = max_drafts
        self.longest_run = 1 if max_drafts else longest_run
        self.boot()

    def boot(self):
        self.scheduler = Scheduler(self.scheduler_config, self.cache_config)
        windows = self.cache_config.layout.windows
        self.worker = MemoryWorker(self.cache_config.num_blocks, BLOCK_SIZE, VOCAB_SIZE, self.max_drafts, windows)
        self.worker.salts = {i: client.source.cache_salt for i, client in self.clients.items()}

    @rule(
        prefix=st.sampled_from(PREFIXES),
        suffix=st.lists(st.integers(0, 11), min_size=1, max_size=14),
        n=st.sampled_from([1, 1, 2, 4]),
        priority=st.integers(0, 2),
        max_tokens=st.integers(1, 12) | st.none(),
        min_tokens=st.sampled_from([0, 0, 3]),
        prompt_logprobs=st.sampled_from([None, None, None, 0]),
        extras=st.sampled_from([{}, {"ignore_eos": True}, {"stop_token_ids": [STOP_TOKEN]}, {"logprobs": 0}]),
        salt=st.sampled_from([None, None, None, "salt"]),
        output_kind=st.sampled_from([RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA]),
        seed=st.integers(0, 3) | st.just(2**63 - 2),
        width=st.sampled_from([None, None, 2, 3]),
        early_stopping=st.sampled_from([False, True, "never"]),
    )
    def arrive(
        self, prefix, suffix, n, priority, max_tokens, min_tokens, prompt_logprobs, extras, salt, output_kind, seed,
        width, early_stopping,
    ):  # fmt: skip
        beam = width and BeamSettings(width, early_stopping=early_stopping)
        params = SamplingParams(
            n=min(n, width or n),
            beam=beam,
            seed=seed,
            max_tokens=max_tokens,
            min_tokens=min(min_tokens, max_tokens or 3),
            prompt_logprobs=prompt_logprobs,
            output_kind=output_kind,
            **extras,
        )
        request_id = f"r{len(self.clients)}"
        source = EngineRequest(request_id, prefix + suffix, params, [EOS], priority=priority, cache_salt=salt)
        fits = len(source.prompt_token_ids) < min(MAX_MODEL_LEN, self.cache_config.num_slots)
        if beam:
            fits = fits and width <= self.scheduler_config.max_num_seqs and self.longest(source) > len(prefix + suffix)
        try:
            self.scheduler.add_request(source)
        except (PromptTooLongError, ParameterError):
            assert not fits
            return
        assert fits
        self.clients[request_id] = Client(source, [[] for _ in range(params.n)])
        self.worker.salts[request_id] = salt

    def longest(self, source):
        """Each beam may need all of its blocks for itself, but for the full ones of the prompt."""
        shared = len(source.prompt_token_ids) // BLOCK_SIZE
        own = (
            self.cache_config.num_blocks // len(self.cache_config.layout.windows) - shared
        ) // source.params.beam.width
        return min(self.max_total, (shared + own) * BLOCK_SIZE + 1 if own > 0 else 0)

    @precondition(lambda self: self.scheduler.has_unfinished())
    @rule(times=st.integers(1, 6))
    def steps(self, times):
        for _ in range(times):
            if self.scheduler.has_unfinished():
                self.step()

    @precondition(lambda self: self.scheduler.has_unfinished())
    @rule(data=st.data())
    def abort_during_a_step(self, data):
        self.step(lambda: self.abort(data))

    @precondition(lambda self: self.scheduler.has_unfinished())
    @rule(data=st.data())
    def abort_between_steps(self, data):
        self.abort(data)

    @rule()
    def reset_prefix_cache(self):
        idle = self.cache_config.num_blocks == self.scheduler.stats().num_free_blocks
        assert self.scheduler.reset_prefix_cache() == idle

    @precondition(lambda self: self.scheduler.has_unfinished())
    @rule()
    def crash_and_replay(self):
        self.boot()
        for request_id, client in self.clients.items():
            if client.unfinished:
                source = client.source
                self.scheduler.add_request(
                    EngineRequest(
                        request_id,
                        source.prompt_token_ids,
                        source.params,
                        source.eos_token_ids,
                        priority=source.priority,
                        cache_salt=source.cache_salt,
                        resumed_token_ids=[list(tokens) for tokens in client.tokens],
                    )
                )
                self.scheduler.abort_sequences([sequence_id(request_id, index) for index in client.gone])

    @invariant()
    def sound(self):
        self.scheduler.check_invariants()
        live = sum(bool(client.unfinished) for client in self.clients.values())
        assert self.scheduler.has_unfinished() == (live > 0)

    def step(self, between=lambda: None):
        output = self.scheduler.schedule(self.longest_run)
        assert 1 <= output.num_decode_steps <= self.longest_run
        assert 0 < output.total_num_scheduled_tokens <= self.scheduler_config.max_num_batched_tokens
        assert len(self.worker.sequences) <= self.scheduler_config.max_num_seqs + len(output.removed_sequence_ids)
        self.scheduler.check_invariants()
        between()
        for news in self.scheduler.update(output, self.worker.execute(output)):
            self.clients[news.request_id].receive(news)
        self.check_stats()

    def check_stats(self):
        filled = {}
        for request in self.scheduler._sequences.running:
            for table in (request.block_ids, *request.more_tables):
                for position in range(request.num_computed_tokens):
                    filled.setdefault(table[position // BLOCK_SIZE], set()).add(position % BLOCK_SIZE)
        filled.pop(self.worker.null, None)
        assert self.scheduler.stats().num_used_token_slots == sum(map(len, filled.values()))

    def abort(self, data):
        request_id = data.draw(st.sampled_from([i for i, client in self.clients.items() if client.unfinished]))
        client = self.clients[request_id]
        started = [index for index in client.unfinished if client.tokens[index]]
        if started and data.draw(st.booleans()):
            index = data.draw(st.sampled_from(started))
            client.gone.add(index)
            self.scheduler.abort_sequences([sequence_id(request_id, index), "unknown"])
        else:
            client.gone.update(client.unfinished)
            self.scheduler.abort([request_id, "unknown"])

    def teardown(self):
        if not hasattr(self, "clients"):
            return
        for _ in range(3000):
            if not self.scheduler.has_unfinished():
                break
            self.step()
        self.sound()
        assert not self.scheduler.has_unfinished()
        assert self.scheduler.stats().num_free_blocks == self.cache_config.num_blocks
        for client in self.clients.values():
            if client.source.params.beam is not None:
                texts = search(client.source, VOCAB_SIZE, self.longest(client.source))
                reasons = [client.reasons.get(index) for index in range(len(texts))]
                assert client.gone or list(zip(client.tokens, reasons, strict=True)) == texts
                continue
            for index, tokens in enumerate(client.tokens):
                expected, reason = generate(client.source, index, VOCAB_SIZE, self.max_total)
                if index in client.gone:
                    assert tokens == expected[: len(tokens)]
                else:
                    assert (tokens, client.reasons[index]) == (expected, reason)
            if client.source.params.prompt_logprobs is not None and client.tokens[0]:
                assert client.prompt_logprobs == client.source.prompt_token_ids[1:]


def sequence_id(request_id: str, index: int) -> str:
    return f"{request_id}.{index}" if index else request_id


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("max_drafts", [0, 4])
def test_traffic_is_deterministic(policy, max_drafts):
    def run():
        scheduler = Scheduler(SchedulerConfig(4, 16, 64, True, 0, policy), CacheConfig(BLOCK_SIZE, 9, True))
        worker = MemoryWorker(9, BLOCK_SIZE, VOCAB_SIZE, max_drafts)
        for number in range(12):
            params = SamplingParams(n=1 + number % 3, seed=number, max_tokens=10)
            prompt = PREFIXES[number % 4] + [number]
            scheduler.add_request(EngineRequest(f"r{number}", prompt, params, [EOS], priority=number % 2))
        trace = []
        while scheduler.has_unfinished():
            output = scheduler.schedule()
            assert output.total_num_scheduled_tokens > 0
            trace.append((output, scheduler.update(output, worker.execute(output))))
        return trace, scheduler.stats()

    trace, stats = run()
    assert stats.num_preemptions > 0 and stats.prefix_cache_hits > 0
    assert bool(stats.num_accepted_tokens) == bool(max_drafts)
    assert (trace, stats) == run()
