"""Speculated text is unspeculated text, bit for bit. The drafts are put in from outside, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interleaf import LLM, SamplingParams
from interleaf.engine.core import Executor
from interleaf.logits_processor import LogitsProcessor, SequenceStart
from interleaf.messages import SchedulerOutput, StepOutput
from tests.loader import tiny
from tests.test_same_bits import block_bytes, run

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.4, "frequency_penalty": 0.6, "presence_penalty": 0.3},
    {"temperature": 0.9, "top_k": 30},
    {"temperature": 1.0, "top_p": 0.9, "frequency_penalty": 1.1},
    {"temperature": 0.0, "bad_words": ["a", "th"], "logit_bias": {7: 4.0, 9: -100.0}},
    {"temperature": 1.1, "min_p": 0.01, "ignore_eos": False, "stop_token_ids": list(range(40, 90)), "min_tokens": 9},
    {"temperature": 0.0, "allowed_token_ids": list(range(20, 60)), "presence_penalty": 1.5},
    {"temperature": 0.8, "stop_token_ids": list(range(100, 120))},
    {"temperature": 0.9, "extra_args": {"follow": True}},
    {"temperature": 0.0, "extra_args": {"follow": True}, "frequency_penalty": 0.5},
]


def requests() -> list[tuple[list[int], SamplingParams]]:
    rng = np.random.default_rng(5)
    prefix = rng.integers(3, 384, 40).tolist()
    result = []
    for i in range(24):
        prompt = rng.integers(3, 384, int(rng.integers(1, 60))).tolist()
        common = {"max_tokens": int(rng.integers(2, 40)), "ignore_eos": True, "logprobs": i % 3, "seed": i}
        params = common | SETTINGS[i % len(SETTINGS)] | {"n": 1 + i % 3, "prompt_logprobs": 1 if i % 5 == 0 else None}
        params["max_tokens"] = max(params["max_tokens"], params.get("min_tokens", 0))
        result.append(((prefix if i % 2 else []) + prompt, SamplingParams(**params)))
    return result


class Follower(LogitsProcessor[int]):
    """Leaves a sequence three tokens, which depend on every token before: one that was not its own would show."""

    def start(self, sequence: SequenceStart) -> int | None:
        if not (sequence.params.extra_args or {}).get("follow"):
            return None
        state = 1
        for token in sequence.output_token_ids:
            state = self.advance(state, token)
        return state

    def advance(self, state: int, token: int) -> int:
        return (state * 31 + token) % 100003

    def apply(self, logits: np.ndarray, held: Sequence[tuple[int, int]]) -> None:
        for i, state in held:
            kept = [(state * factor) % 384 for factor in (7, 11, 13)]
            values = logits[i, kept]
            logits[i] = -np.inf
            logits[i, kept] = values


class Drafting:
    """An executor that adds drafts to another's results: the tokens that will come, about one in five made wrong."""

    def __init__(self, inner: Executor, texts: dict[tuple[int, ...], list[int]]) -> None:
        self._inner = inner
        self._texts = texts
        self._rng = np.random.default_rng(0)
        self._tokens: dict[str, list[int]] = {}
        self._seeds: dict[str, tuple[int, ...]] = {}

    @property
    def kernel_seconds(self) -> float:
        return self._inner.kernel_seconds

    def execute(self, scheduled: SchedulerOutput) -> StepOutput:
        for new in scheduled.new_requests:
            self._tokens[new.sequence_id] = list(new.token_ids)
            self._seeds[new.sequence_id] = (new.seed, *new.token_ids[: new.num_prompt_tokens])
        step = self._inner.execute(scheduled)
        for name, sampled in step.sampled_token_ids.items():
            tokens, key = self._tokens[name], self._seeds[name]
            tokens += sampled
            coming = self._texts[key][len(tokens) - len(key) + 1 :][: int(self._rng.integers(0, 9))]
            drafts = [token if self._rng.random() < 0.8 else (token + 1) % 384 for token in coming]
            if drafts:
                step.draft_token_ids[name] = drafts
        return step

    def close(self) -> None:
        self._inner.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen3(tmp_path_factory.mktemp("drafts"), num_hidden_layers=3)


@pytest.fixture(scope="module")
def expected(model: Path) -> list[Any]:
    with LLM(model, kv_cache_memory_bytes=1 << 24, logits_processors=[Follower]) as llm:
        return run(llm, requests())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 33},
        {"max_num_seqs": 2},
        {"kv_cache_memory_bytes": 14, "max_model_len": 160},
        {"kv_cache_memory_bytes": 14, "max_model_len": 160, "enable_prefix_caching": False},
    ],
    ids=["all at once", "small steps", "few at a time", "preempted", "preempted without cache"],
)
def test_drafts_change_no_bit(model: Path, expected: list[Any], options: dict[str, Any]) -> None:
    work = requests()
    texts = {
        (params.seed + i, *prompt): tokens
        for (prompt, params), (sequences, _) in zip(work, expected, strict=True)
        for i, (tokens, _) in enumerate(sequences)
        if params.seed is not None
    }
    options = {"kv_cache_memory_bytes": 1 << 24} | options
    if options["kv_cache_memory_bytes"] < 1000:
        options["kv_cache_memory_bytes"] *= block_bytes(model)
    with LLM(model, logits_processors=[Follower], **options) as llm:
        core = llm.client.core
        assert core._executor is not None
        core._executor = Drafting(core._executor, texts)
        assert run(llm, work) == expected
        stats = llm.client.stats()
        assert stats.num_accepted_tokens > 50
        assert stats.num_draft_tokens > stats.num_accepted_tokens > stats.num_drafts / 2
        assert sum(stats.num_accepted_tokens_per_pos) == stats.num_accepted_tokens
        assert (stats.num_preemptions > 5) == ("max_model_len" in options)
        assert stats.num_free_blocks == stats.num_blocks
