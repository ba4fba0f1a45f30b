"""Each logits processor against the plainest statement of what it does, and through a whole engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interleaf import LLM, SamplingParams
from interleaf.messages import NewRequest
from interleaf.reasoning import ReasoningMarkers
from interleaf.worker.logits.allowed_token_ids import AllowedTokenIds
from interleaf.worker.logits.bad_words import BadWords
from interleaf.worker.logits.chain import BUILT_IN
from interleaf.worker.logits.logit_bias import LogitBias
from interleaf.worker.logits.min_tokens import MinTokens
from interleaf.worker.logits.penalties import Penalties
from interleaf.worker.logits.thinking_budget import ThinkingBudget
from tests.loader import tiny

VOCAB_SIZE = 50


def request(prompt: list[int], output: list[int], eos: list[int] | None = None, **params: Any) -> NewRequest:
    bad_words = params.pop("bad_word_token_ids", [])
    return NewRequest("r", prompt + output, len(prompt), 0, [], SamplingParams(**params), 0, eos or [], bad_words)


def apply(kind: type[Any], held: NewRequest, later: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a row before and after, beside a row that the processor does not hold and must leave alone."""
    processor = kind(None)
    state = processor.start(held)
    for token in later:
        state = processor.advance(state, token)
    before = np.random.default_rng(0).normal(0, 3, (2, VOCAB_SIZE)).astype(np.float32)
    after = before.copy()
    processor.apply(after, [(1, state)])
    np.testing.assert_array_equal(after[0], before[0])
    return before[1], after[1]


def test_penalties_by_the_formula() -> None:
    prompt, output, later = [1, 2, 2, 3], [3, 4, 4], tuple([4, 5] + list(range(6, 49)) * 2)
    held = request(prompt, output, repetition_penalty=1.7, frequency_penalty=0.3, presence_penalty=-0.4)
    before, after = apply(Penalties, held, later)
    generated = [*output, *later]
    for token in range(VOCAB_SIZE):
        expected, count = float(before[token]), generated.count(token)
        if token in prompt or count:
            expected = expected / 1.7 if expected > 0 else expected * 1.7
        expected -= 0.3 * count - (0.4 if count else 0.0)
        assert after[token] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_they_hold_nothing_that_was_not_asked_for(kind: type[Any]) -> None:
    assert kind(None).start(request([1], [2], eos=[3])) is None


def test_logit_bias() -> None:
    before, after = apply(LogitBias, request([1], [], logit_bias={7: 2.5, 9: -100.0}))
    expected = before.copy()
    expected[7] += 2.5
    expected[9] -= 100.0
    np.testing.assert_allclose(after, expected, rtol=1e-6)


def test_allowed_token_ids() -> None:
    before, after = apply(AllowedTokenIds, request([1], [], allowed_token_ids=[4, 2, 4]))
    assert np.isneginf(np.delete(after, [2, 4])).all()
    np.testing.assert_array_equal(after[[2, 4]], before[[2, 4]])


@pytest.mark.parametrize(("num_output", "masked"), [(0, True), (2, True), (3, False)])
def test_min_tokens(num_output: int, masked: bool) -> None:
    processor: Any = MinTokens(None)  # type: ignore[arg-type]
    state = processor.start(request([1], [9], eos=[5], stop_token_ids=[6], min_tokens=4, max_tokens=9))
    for _ in range(num_output):
        state = processor.advance(state, 9)
    assert (state is not None) == masked
    if masked:
        logits = np.zeros((1, VOCAB_SIZE), np.float32)
        processor.apply(logits, [(0, state)])
        assert np.flatnonzero(np.isneginf(logits[0])).tolist() == [5, 6]


@pytest.mark.parametrize(("tail", "masked"), [([7, 8], [9, 20]), ([8], [20]), ([7, 8, 1], [20])])
def test_bad_words(tail: list[int], masked: list[int]) -> None:
    _, after = apply(BadWords, request([7], [], bad_word_token_ids=[[7, 8, 9], [20]]), tuple(tail))
    assert np.flatnonzero(np.isneginf(after)).tolist() == masked


@pytest.mark.parametrize(
    ("is_open", "output", "forced"),
    [
        (True, [1, 2], None),
        (True, [1, 2, 3], 7),
        (True, [1, 2, 3, 7], 8),
        (True, [1, 7], None),
        (True, [1, 2, 7], 8),
        (True, [1, 7, 8], None),
        (True, [1, 2, 3, 7, 8, 9], None),
        (False, [5, 6, 1, 2], None),
        (False, [5, 6, 1, 2, 3], 7),
        (False, [5], None),
        (False, [1, 5, 6, 1, 2, 3], None),
    ],
)
def test_thinking_budget(is_open: bool, output: list[int], forced: int | None) -> None:
    """Whether the tokens were there when the row was added (a preempted sequence) or came later."""
    params: Any = {"thinking_token_budget": 3, "reasoning_markers": ReasoningMarkers([5, 6], [7, 8], is_open)}
    for split in range(len(output) + 1):
        processor = ThinkingBudget(None)  # type: ignore[arg-type]
        state = processor.start(request([5, 6], output[:split], **params))
        for token in output[split:]:
            state = state and processor.advance(state, token)
        after = np.ones((1, VOCAB_SIZE), np.float32)
        if state is not None:
            processor.apply(after, [(0, state)])
        allowed = np.flatnonzero(np.isfinite(after[0])).tolist()
        assert allowed == (list(range(VOCAB_SIZE)) if forced is None else [forced])


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):
    path = tiny.tiny_llama(tmp_path_factory.mktemp("processors"))
    with LLM(path, dtype="float32", kv_cache_memory_bytes=1 << 22) as llm:
        yield llm


def generate(llm: LLM, **params: Any) -> list[int]:
    settings = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, **params}
    return llm.generate([[5, 6, 7]], SamplingParams(**settings), use_tqdm=False)[0].outputs[0].token_ids


def test_they_act_on_the_engine(llm: LLM) -> None:
    plain = generate(llm)
    assert set(generate(llm, allowed_token_ids=[11, 12])) <= {11, 12}
    assert generate(llm, logit_bias={plain[0]: -100.0})[0] != plain[0]
    assert generate(llm, logit_bias={33: 100.0}) == [33] * 12
    never_twice = generate(llm, presence_penalty=2.0, frequency_penalty=2.0, logit_bias={40: 1.5})
    assert len(set(never_twice)) > len(set(generate(llm, logit_bias={33: 100.0})))
    stopped = generate(llm, stop_token_ids=[plain[2]])
    assert stopped == plain[: plain.index(plain[2]) + 1]
    markers = ReasoningMarkers([], [50, 51], is_open=True)
    assert generate(llm, thinking_token_budget=4, reasoning_markers=markers)[4:6] == [50, 51]
    later = generate(llm, stop_token_ids=[plain[2]], min_tokens=8)
    assert len(later) >= 8
    assert plain[2] not in later[:7]


def test_logprobs_are_of_the_raw_distribution(llm: LLM) -> None:
    def first_logprobs(**params: Any) -> dict[int, float]:
        settings = SamplingParams(temperature=0.0, max_tokens=1, logprobs=5, **params)
        entry = llm.generate([[5, 6, 7]], settings, use_tqdm=False)[0].outputs[0].logprobs
        assert entry is not None
        return {token: value.logprob for token, value in entry[0].items()}

    plain = first_logprobs()
    biased = first_logprobs(logit_bias={44: 100.0})
    assert 44 in biased
    assert {token: biased[token] for token in plain if token in biased} == {
        token: plain[token] for token in plain if token in biased
    }
    assert biased[44] < max(plain.values())


def test_a_directory_is_closed(tmp_path: Path) -> None:
    llm = LLM(tiny.tiny_llama(tmp_path / "m"), kv_cache_memory_bytes=1 << 20)
    llm.close()
    llm.close()
    with pytest.raises(Exception, match="closed"):
        llm.generate(["x"], use_tqdm=False)
