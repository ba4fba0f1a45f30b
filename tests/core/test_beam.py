"""Beam search alone and in the scheduler. `tests/models/test_beam_search.py` compares it with Transformers."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest

from interleaf.config import CacheConfig, SchedulerConfig
from interleaf.core.beam import BeamSearch
from interleaf.core.scheduler import Scheduler
from interleaf.errors import ParameterError, PromptTooLongError
from interleaf.messages import BeamCandidates, EngineOutput, EngineRequest
from interleaf.params import BeamSettings, SamplingParams
from tests.core.memory_worker import MemoryWorker

EOS = 0


def logprobs(prefix: tuple[int, ...], vocab_size: int) -> list[float]:
    """Of a model that is a function of the prefix."""
    rng = random.Random(repr(prefix))
    weights = [rng.random() ** 3 for _ in range(vocab_size)]
    return [math.log(weight / sum(weights)) for weight in weights]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0, -1.0])
def test_a_search_as_wide_as_all_texts_finds_the_best(length_penalty: float) -> None:
    vocab_size, length = 3, 4
    settings = BeamSettings(vocab_size**length, length_penalty, "never")
    beams = BeamSearch(settings, frozenset([EOS]), frozenset(), length, 0)
    prefixes: list[tuple[int, ...]] = [()]
    while True:
        ranked = [sorted(zip(logprobs(one, vocab_size), range(vocab_size), strict=True))[::-1] for one in prefixes]
        given = [BeamCandidates([token for _, token in one], [logprob for logprob, _ in one]) for one in ranked]
        chosen = beams.advance(given)
        if not chosen:
            break
        prefixes = [(*prefixes[number], token) for number, token in chosen]
    texts = {
        text[: text.index(EOS) + 1] if EOS in text else text
        for text in itertools.product(range(vocab_size), repeat=length)
    }

    def score(text: tuple[int, ...]) -> float:
        total = sum(logprobs(text[:place], vocab_size)[token] for place, token in enumerate(text))
        return total / len(text) ** length_penalty

    expected = sorted(texts, key=score, reverse=True)
    found = [tuple(node.token for node in one.node.path()) for one in beams.results()]
    assert found[:5] == expected[:5]
    assert beams.results()[0].score == pytest.approx(score(expected[0]))


def run(scheduler: Scheduler, worker: MemoryWorker) -> tuple[list[EngineOutput], int]:
    """What came out, and the most blocks that were held at once."""
    outputs, peak = [], 0
    while scheduler.has_unfinished():
        scheduled = scheduler.schedule()
        stats = scheduler.stats()
        peak = max(peak, stats.num_blocks - stats.num_free_blocks)
        outputs += scheduler.update(scheduled, worker.execute(scheduled))
    return outputs, peak


def request(name: str, num_prompt_tokens: int, width: int = 4, **options: Any) -> EngineRequest:
    params = SamplingParams(n=width, seed=0, ignore_eos=True, beam=BeamSettings(width), **options)
    return EngineRequest(name, list(range(10, 10 + num_prompt_tokens)), params)


def test_beams_share_blocks() -> None:
    """The goal: at width 4, at least 40 % fewer blocks than four sequences of their own."""
    for num_prompt_tokens, num_new_tokens in ((100, 64), (20, 128)):
        scheduler = Scheduler(SchedulerConfig(8, 512, 512), CacheConfig(16, 100, True))
        scheduler.add_request(request("r", num_prompt_tokens, max_tokens=num_new_tokens))
        _, peak = run(scheduler, MemoryWorker(100, 16))
        unshared = 4 * -(-(num_prompt_tokens + num_new_tokens) // 16)
        assert peak <= 0.6 * unshared


def test_a_beam_with_one_child_keeps_its_sequence() -> None:
    scheduler = Scheduler(SchedulerConfig(8, 512, 512), CacheConfig(16, 100, True))
    scheduler.add_request(request("r", 20, max_tokens=40))
    worker = MemoryWorker(100, 16)
    rounds = num_new = num_picked = 0
    while scheduler.has_unfinished():
        scheduled = scheduler.schedule()
        scheduler.update(scheduled, worker.execute(scheduled))
        rounds += 1
        num_new += len(scheduled.new_requests)
        num_picked += len(scheduled.picked_token_ids)
        assert scheduler.stats().num_running <= 4
    # All but the first round extend four beams, each by the token that it got; one child of a beam is never a fork.
    assert num_new + num_picked == 1 + 4 * (rounds - 1)
    assert num_picked >= rounds - 1


def test_a_search_that_does_not_fit_is_refused() -> None:
    scheduler = Scheduler(SchedulerConfig(3, 512, 512), CacheConfig(16, 8, True))
    with pytest.raises(ParameterError, match="beam_width is 4, but at most 3 sequences"):
        scheduler.add_request(request("r", 5))
    with pytest.raises(PromptTooLongError, match="no room for 3 beams behind a prompt of 100 tokens"):
        scheduler.add_request(request("r", 100, width=3))
    scheduler.add_request(request("r", 60, width=3, max_tokens=200))
    outputs, peak = run(scheduler, MemoryWorker(8, 16))
    # The prompt's three full blocks are shared, and one more is left for each beam.
    assert [len(output.new_token_ids) for output in outputs if output.finished] == [5, 5, 5]
    assert peak <= 8


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("num_rounds", [1, 2, 30])
def test_a_preempted_search_goes_on_where_it_was(caching: bool, num_rounds: int) -> None:
    outputs, num_computed = [], []
    for preempted in (False, True):
        scheduler = Scheduler(SchedulerConfig(8, 512, 512), CacheConfig(16, 100, caching))
        scheduler.add_request(request("r", 50, max_tokens=40))
        worker, found, computed = MemoryWorker(100, 16), [], 0
        for step in itertools.count():
            if not scheduler.has_unfinished():
                break
            if preempted and step in (num_rounds, num_rounds + 1):
                # The second time it has what the beams have in common, and not yet the beams.
                scheduler.suspend()
            scheduled = scheduler.schedule()
            computed += scheduled.total_num_scheduled_tokens
            found += scheduler.update(scheduled, worker.execute(scheduled))
            scheduler.check_invariants()
        outputs.append([one for one in found if one.finished])
        num_computed.append(computed)
    assert outputs[0] == outputs[1] and len(outputs[0]) == 4
    # What is in common is computed twice more, and what is not once more for each beam, all in two more steps.
    assert num_computed[1] - num_computed[0] <= 2 * (50 + num_rounds) + 4 * num_rounds
