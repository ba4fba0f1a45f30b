"""Promise 1: a request's tokens and logprobs are the same bits however it is run. Compared with ==."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interleaf import LLM, RequestOutput, SamplingParams
from interleaf.params import BeamSettings
from interleaf.reasoning import ReasoningMarkers
from interleaf.worker.shared_prefixes import SharedPrefixes
from tests.loader import tiny

CACHE_BYTES = 1 << 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen3(tmp_path_factory.mktemp("same-bits"), num_hidden_layers=3)


def requests(count: int = 64, vocab_size: int = 384) -> list[tuple[list[int], SamplingParams]]:
    """Short and long prompts, some with a common prefix; greedy and sampled with every filter and penalty."""
    rng = np.random.default_rng(7)
    prefix = rng.integers(3, vocab_size, 70).tolist()
    settings: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8},
        {"temperature": 1.2, "top_k": 20},
        {"temperature": 1.0, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.7, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
        {"temperature": 0.9, "thinking_token_budget": 5, "reasoning_markers": ReasoningMarkers([9], [7, 8], True)},
        {
            "temperature": 1.0,
            "n": 2,
            "beam": BeamSettings(3),
            "repetition_penalty": 1.2,
            "stop_token_ids": [*range(50)],
        },
    ]
    result = []
    for i in range(count):
        prompt = rng.integers(3, vocab_size, int(rng.integers(1, 120))).tolist()
        if i % 3 == 0:
            prompt = prefix + prompt[:20]
        params = SamplingParams(
            **settings[i % len(settings)],
            seed=1000 + i,
            max_tokens=int(rng.integers(2, 30)),
            ignore_eos=True,
            logprobs=2,
            prompt_logprobs=1 if i % 7 == 0 else None,
        )
        result.append((prompt, params))
    return result


def essence(output: RequestOutput) -> list[Any]:
    """What must be equal: tokens, logprobs with their ranks, prompt logprobs."""

    def plain(entries: Any) -> Any:
        return [
            None if entry is None else {token: (value.logprob, value.rank) for token, value in entry.items()}
            for entry in entries or ()
        ]

    sequences = [(sequence.token_ids, plain(sequence.logprobs)) for sequence in output.outputs]
    return [sequences, plain(output.prompt_logprobs)]


def run(llm: LLM, work: list[tuple[list[int], SamplingParams]]) -> list[Any]:
    prompts, params = zip(*work, strict=True)
    return [essence(output) for output in llm.generate(list(prompts), list(params), use_tqdm=False)]


@pytest.fixture(scope="module")
def expected(model: Path) -> Iterator[list[Any]]:
    """Every request alone in a fresh engine's batch."""
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, enable_prefix_caching=False) as llm:
        yield [run(llm, [request])[0] for request in requests()]


MODES: dict[str, dict[str, Any]] = {
    "all at once": {},
    "small steps": {"max_num_batched_tokens": 64},
    "large steps": {"max_num_batched_tokens": 2048},
    "no prefix cache": {"enable_prefix_caching": False},
    "few at a time": {"max_num_seqs": 3},
    "larger blocks": {"block_size": 64},
    "long prompts in pieces": {"long_prefill_token_threshold": 13},
    "by priority": {"scheduling_policy": "priority"},
}


@pytest.mark.parametrize("mode", MODES)
def test_same_bits(mode: str, model: Path, expected: list[Any]) -> None:
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, **MODES[mode]) as llm:
        assert run(llm, requests()) == expected


def test_same_bits_in_any_order_cold_and_warm(model: Path, expected: list[Any]) -> None:
    order = list(range(len(expected)))
    random.Random(0).shuffle(order)
    work = requests()
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES) as llm:
        for _ in range(2):
            for index, result in zip(order, run(llm, [work[i] for i in order]), strict=True):
                assert result == expected[index]
        assert llm.client.stats().prefix_cache_hits > 0


@pytest.mark.parametrize("caching", [True, False])
def test_same_bits_under_preemption(model: Path, expected: list[Any], caching: bool) -> None:
    budget = 14 * block_bytes(model)
    with LLM(model, max_model_len=160, kv_cache_memory_bytes=budget, enable_prefix_caching=caching) as llm:
        assert run(llm, requests()) == expected
        assert llm.client.stats().num_preemptions > 10


@pytest.mark.parametrize(("caching", "cache_dtype"), [(True, "auto"), (False, "auto"), (True, "int8")])
def test_same_bits_behind_a_long_common_prefix(
    tmp_path: Path, caching: bool, cache_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two chunks of keys are common to requests, beams and forks, whose attention reads them together."""
    model = tiny.tiny_qwen3(tmp_path, num_hidden_layers=2, max_position_embeddings=600)
    rng = np.random.default_rng(11)
    prefix = rng.integers(3, 384, 530).tolist()
    settings: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 1.0, "n": 3}, {"beam": BeamSettings(4)}]
    work = [
        (prefix + rng.integers(3, 384, 5 + i).tolist(), SamplingParams(seed=i, max_tokens=8, logprobs=1, **one))
        for i, one in enumerate(settings * 2)
    ]
    options: dict[str, Any] = {"kv_cache_dtype": cache_dtype, "kv_cache_memory_bytes": CACHE_BYTES}
    with monkeypatch.context() as patch:
        patch.setattr(SharedPrefixes, "note", lambda *arguments: None)
        with LLM(model, enable_prefix_caching=False, **options) as llm:
            expected = [run(llm, [request])[0] for request in work]
    most, note = [], SharedPrefixes.note

    def noted(self: SharedPrefixes, *arguments: Any) -> None:
        note(self, *arguments)
        most.append(int(self._inputs.shared_chunks.max()))

    monkeypatch.setattr(SharedPrefixes, "note", noted)
    with LLM(model, enable_prefix_caching=caching, **options) as llm:
        assert run(llm, work) == expected
    assert max(most) == 2


def block_bytes(model: Path, cache_dtype: str = "bfloat16") -> int:
    from interleaf.config import kv_bytes_per_token
    from interleaf.loader.checkpoint import open_checkpoint
    from interleaf.model_config import parse_model_config

    with open_checkpoint(str(model)) as checkpoint:
        return kv_bytes_per_token(parse_model_config(checkpoint.hf_config), cache_dtype) * 16


def test_same_bits_with_windows(tmp_path: Path) -> None:
    """Gemma 3: two kinds of layers in five groups, windows of 24 tokens; in the last mode blocks run out."""
    model = tiny.tiny_gemma3(tmp_path / "gemma3", num_hidden_layers=5)
    work = requests(32)
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, enable_prefix_caching=False) as llm:
        alone = [run(llm, [request])[0] for request in work]
    small = {"max_model_len": 160, "kv_cache_memory_bytes": 14 * block_bytes(model), "max_num_batched_tokens": 32}
    modes: list[dict[str, Any]] = [{}, {"max_num_batched_tokens": 48, "block_size": 32}, {"max_num_seqs": 3}, small]
    for mode in modes:
        with LLM(model, **{"kv_cache_memory_bytes": CACHE_BYTES, **mode}) as llm:
            for _ in range(2):
                assert run(llm, work) == alone
            stats = llm.client.stats()
            assert stats.num_preemptions > 0 if mode is small else stats.prefix_cache_hits > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_seqs": 2},
        {"max_num_batched_tokens": 20},
        {"enable_prefix_caching": False},
        {"kv_cache_dtype": "int8"},
    ],
)
def test_n_sequences_are_n_requests_with_the_derived_seeds(model: Path, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, **options) as llm:
        for length in (1, 15, 16, 17, 47, 64):
            prompt = rng.integers(3, 384, length).tolist()
            common = {"temperature": 0.9, "max_tokens": 20, "ignore_eos": True, "logprobs": 1}
            together = run(llm, [(prompt, SamplingParams(n=4, seed=50, **common))])[0][0]
            apart = [run(llm, [(prompt, SamplingParams(seed=50 + i, **common))])[0][0][0] for i in range(4)]
            assert together == apart
            assert len({tuple(tokens) for tokens, _ in together}) > 1


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_same_bits_with_an_int8_cache(model: Path, quantization: str | None) -> None:
    """All at once, in small steps, from the prefix cache, preempted: as alone in a fresh cache."""
    work = requests()
    options: dict[str, Any] = {"kv_cache_dtype": "int8", "quantization": quantization}
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, enable_prefix_caching=False, **options) as llm:
        alone = [run(llm, [request])[0] for request in work]
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, max_num_batched_tokens=50, **options) as llm:
        for _ in range(2):
            assert run(llm, work) == alone
        assert llm.client.stats().prefix_cache_hits > 0
    budget = 14 * block_bytes(model, "int8")
    with LLM(model, max_model_len=160, kv_cache_memory_bytes=budget, **options) as llm:
        assert run(llm, work) == alone
        assert llm.client.stats().num_preemptions > 10


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_same_bits_with_quantized_weights(model: Path, quantization: str) -> None:
    work = requests(16)
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, quantization=quantization) as llm:
        alone = [run(llm, [request])[0] for request in work]
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, quantization=quantization, max_num_batched_tokens=50) as llm:
        assert run(llm, work) == alone


@pytest.mark.parametrize("quantization", [None, "gguf"])
def test_same_bits_on_a_fresh_engine_with_the_real_model(builtin_gguf: Path, quantization: str | None) -> None:
    work = [
        (
            prompt,
            SamplingParams(temperature=params.temperature, seed=params.seed, max_tokens=8, logprobs=1),
        )
        for prompt, params in requests(12, 49000)
    ]
    with LLM(kv_cache_memory_bytes=1 << 28, quantization=quantization) as llm:
        alone = [run(llm, [request])[0] for request in work]
    with LLM(kv_cache_memory_bytes=1 << 28, quantization=quantization, max_num_batched_tokens=64) as llm:
        assert run(llm, work) == alone
