"""Speculated text is unspeculated text, whoever makes the drafts. Compared with ==."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interleaf import LLM, SamplingParams
from interleaf.errors import ConfigError
from interleaf.frontend.async_engine import AsyncEngine
from interleaf.params import RequestOutputKind
from tests.loader import tiny
from tests.test_same_bits import run
from tests.worker.test_drafts import SETTINGS, Follower

CACHE_BYTES = 1 << 24

pytestmark = pytest.mark.usefixtures("drafts_at_any_cost")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen3(tmp_path_factory.mktemp("speculation"), num_hidden_layers=2)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_llama(tmp_path_factory.mktemp("draft"), num_hidden_layers=1)


def work() -> list[tuple[list[int], SamplingParams]]:
    """Prompts that repeat themselves, some with a common prefix; texts that a small model soon repeats too."""
    rng = np.random.default_rng(9)
    prefix = rng.integers(3, 384, 36).tolist()
    result = []
    for i in range(18):
        piece = rng.integers(3, 384, int(rng.integers(3, 20))).tolist()
        settings = {"max_tokens": 40, "ignore_eos": True, "logprobs": i % 3} | SETTINGS[i % len(SETTINGS)]
        if i % 7 == 3:
            settings["stop"] = ["e", "q", "Z", "0"]
        params = SamplingParams(seed=i, n=1 + (i % 6 == 4), **settings)
        result.append(((prefix if i % 2 else []) + piece * 3, params))
    return result


@pytest.fixture(scope="module")
def expected(model: Path) -> Iterator[list[Any]]:
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, logits_processors=[Follower]) as llm:
        yield run(llm, work())


def speculative(method: str, model: Path, other: Path) -> dict[str, Any]:
    return {
        "ngram": {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 1, "prompt_lookup_max": 4},
        "suffix": {"method": "suffix"},
        "itself": {"model": str(model), "num_speculative_tokens": 4},
        "itself, greedy": {"model": str(model), "num_speculative_tokens": 18, "draft_sample_method": "greedy"},
        "another": {"model": str(other), "num_speculative_tokens": 3},
    }[method] | {"disable_by_batch_size": 100}


WIDE: dict[str, Any] = {}
NARROW = {"max_num_batched_tokens": 48, "max_num_seqs": 5}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ngram", WIDE),
        ("ngram", NARROW),
        ("suffix", WIDE),
        ("itself", NARROW),
        ("itself, greedy", WIDE),
        ("another", NARROW),
    ],
)
def test_speculated_text_is_the_same(
    method: str, options: dict[str, Any], model: Path, other: Path, expected: list[Any]
) -> None:
    config = speculative(method, model, other)
    options = {"kv_cache_memory_bytes": CACHE_BYTES, "logits_processors": [Follower], **options}
    with LLM(model, speculative_config=config, **options) as llm:
        assert run(llm, work()) == expected
        assert run(llm, work()) == expected, "with a warm prefix cache"
        stats = llm.client.stats()
        assert stats.num_draft_tokens > 20
        assert stats.num_accepted_tokens > 0 or method == "another"


def test_a_model_that_drafts_for_itself_is_always_right(model: Path) -> None:
    """With the same weights, noise and context every draft is accepted: also behind cached and forked blocks."""
    config = {"model": str(model), "num_speculative_tokens": 4, "disable_by_batch_size": 100}
    rng = np.random.default_rng(2)
    prefix = rng.integers(3, 384, 40).tolist()
    prompts = [prefix + rng.integers(3, 384, 5 + i).tolist() for i in range(6)]
    params = SamplingParams(temperature=0.9, seed=4, n=2, max_tokens=30, ignore_eos=True)
    with LLM(model, kv_cache_memory_bytes=1 << 21, max_model_len=128, speculative_config=config) as llm:
        for _ in range(2):
            llm.generate(prompts, params, use_tqdm=False)
        stats = llm.client.stats()
        assert stats.prefix_cache_hits > 0
        # What is wrong are drafts of forks, made in the step before their common last block is copied.
        assert stats.num_accepted_tokens >= 0.9 * stats.num_draft_tokens > 0


def test_rejection_sampling_in_the_engine(model: Path, other: Path, expected: list[Any]) -> None:
    """Greedy texts are the same; of a model that drafts for itself p is q, so that every draft is accepted."""
    rejection = {"rejection_sample_method": "standard", "num_speculative_tokens": 4, "disable_by_batch_size": 100}
    greedy = [i for i, (_, params) in enumerate(work()) if params.greedy]
    with LLM(
        model,
        kv_cache_memory_bytes=CACHE_BYTES,
        logits_processors=[Follower],
        speculative_config={"model": str(other), **rejection},
    ) as llm:
        assert run(llm, [work()[i] for i in greedy]) == [expected[i] for i in greedy]
        sampled = [work()[i] for i in range(18) if i not in greedy]
        assert [len(sequences) for sequences, _ in run(llm, sampled)] == [params.n for _, params in sampled]
    params = SamplingParams(temperature=1.0, top_k=50, seed=4, max_tokens=30, ignore_eos=True)
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, speculative_config={"model": str(model), **rejection}) as llm:
        llm.generate([[5, 6, 7, 8 + i] for i in range(6)], params, use_tqdm=False)
        stats = llm.client.stats()
        assert stats.num_accepted_tokens >= 0.97 * stats.num_draft_tokens > 0


def test_streams_go_on_with_the_same_tokens_on_another_engine(model: Path, expected: list[Any]) -> None:
    """Deltas of several tokens, an engine that is killed in the middle, and what Prometheus is told in the end."""
    plain = [i for i, (_, params) in enumerate(work()) if not params.extra_args and params.stop is None]

    async def stream(engine: AsyncEngine, index: int, begun: list[int]) -> list[Any]:
        prompt, params = work()[index]
        params.output_kind = RequestOutputKind.DELTA
        gathered: list[Any] = [([], []) for _ in range(params.n)]
        async for output in engine.generate({"prompt_token_ids": prompt}, params):
            for sequence in output.outputs:
                tokens, logprobs = gathered[sequence.index]
                tokens += sequence.token_ids
                logprobs += [
                    {token: (value.logprob, value.rank) for token, value in entry.items()}
                    for entry in sequence.logprobs or ()
                ]
                begun[0] += len(sequence.token_ids)
        return [gathered, []]

    async def main() -> None:
        config = {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3, "disable_by_batch_size": 100}
        options = {"kv_cache_memory_bytes": CACHE_BYTES, "threads": 2, "speculative_config": config}
        async with AsyncEngine(model=str(model), **options) as engine:
            begun = [0]
            tasks = [asyncio.create_task(stream(engine, index, begun)) for index in plain]
            while begun[0] < 60:
                await asyncio.sleep(0.002)
            pid = engine.engine_pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert await asyncio.gather(*tasks) == [expected[index] for index in plain]
            metrics = engine.metrics.render().decode()
            assert "vllm:spec_decode_num_accepted_tokens_per_pos_total{" in metrics
            assert (await engine.get_stats()).num_accepted_tokens > 0

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_request_may_do_without(model: Path) -> None:
    params = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, speculative_config={"method": "ngram"}) as llm:
        without = llm.generate([5, 6, 7] * 5, SamplingParams(speculative=False, **params), use_tqdm=False)
        assert llm.client.stats().num_drafts == 0
        speculated = llm.generate([5, 6, 7] * 5, SamplingParams(**params), use_tqdm=False)
        assert llm.client.stats().num_drafts > 0
        assert without[0].outputs[0].token_ids == speculated[0].outputs[0].token_ids


def test_a_full_batch_has_no_drafts(model: Path) -> None:
    config = {"method": "ngram", "disable_by_batch_size": 3}
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, speculative_config=config) as llm:
        llm.generate([[5, 6, 7] * 5] * 4, params, use_tqdm=False)
        assert llm.client.stats().num_drafts == 0
        llm.generate([[5, 6, 7] * 5] * 3, params, use_tqdm=False)
        assert llm.client.stats().num_drafts > 0


def test_a_draft_model_must_have_the_same_vocabulary(model: Path, tmp_path: Path) -> None:
    other = tiny.tiny_llama(tmp_path / "other", vocab_size=400)
    with pytest.raises(ConfigError, match="speculative_config: model has a vocabulary of 400"):
        LLM(model, speculative_config={"model": str(other)})
