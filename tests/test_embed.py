"""Embeddings: the hidden states are Transformers', and their bits depend on nothing but the prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interleaf import LLM, PoolingParams, SamplingParams
from interleaf.errors import EngineDeadError, ParameterError, PromptTooLongError, RequestError, RequestFailedError
from interleaf.outputs import EmbeddingRequestOutput, RequestOutput
from interleaf.params import Pooling
from tests.loader import tiny
from tests.models.transformers_peer import load_peer
from tests.test_same_bits import CACHE_BYTES, block_bytes, essence, requests

POOLINGS: list[Pooling] = ["last", "mean"]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_qwen3(tmp_path_factory.mktemp("embed"), num_hidden_layers=3)


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model, dtype="float32", max_model_len=96, kv_cache_memory_bytes=CACHE_BYTES) as llm:
        yield llm


def prompts() -> list[list[int]]:
    """Of all lengths, some with a common prefix."""
    rng = np.random.default_rng(5)
    prefix = rng.integers(3, 384, 40).tolist()
    alone = [rng.integers(3, 384, length).tolist() for length in (1, 2, 15, 16, 17, 63, 64, 65, 90)]
    return alone + [prefix + one[:30] for one in alone]


def embed(llm: LLM, work: list[list[int]], **params: Any) -> list[list[float]]:
    return [one.outputs.embedding for one in llm.embed(work, PoolingParams(**params), use_tqdm=False)]


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_qwen2, tiny.tiny_qwen3, tiny.tiny_mistral])
def test_they_are_transformers_hidden_states(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    peer = load_peer(path)
    with LLM(path, dtype="float32", max_num_batched_tokens=50, kv_cache_memory_bytes=1 << 22) as llm:
        last = embed(llm, prompts(), pooling="last", normalize=False)
        mean = embed(llm, prompts(), pooling="mean", normalize=False)
    for number, prompt in enumerate(prompts()):
        with torch.inference_mode():
            # Transformers' last hidden states are those behind the final norm.
            hidden = peer(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0].double()
        torch.testing.assert_close(torch.tensor(last[number]).double(), hidden[-1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(mean[number]).double(), hidden.mean(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_same_bits(pooling: Pooling, dtype: str, model: Path) -> None:
    with LLM(model, dtype=dtype, kv_cache_memory_bytes=CACHE_BYTES, enable_prefix_caching=False) as llm:
        expected = [embed(llm, [prompt], pooling=pooling)[0] for prompt in prompts()]
    modes: list[dict[str, Any]] = [
        {},
        {"max_num_batched_tokens": 13, "max_num_seqs": 13},
        {"max_num_seqs": 2},
        {"long_prefill_token_threshold": 7},
    ]
    for mode in modes:
        with LLM(model, dtype=dtype, kv_cache_memory_bytes=CACHE_BYTES, **mode) as llm:
            assert embed(llm, prompts(), pooling=pooling) == expected
            # Once more, with a prefix cache that has all of them.
            assert embed(llm, prompts(), pooling=pooling) == expected
            stats = llm.client.stats()
            assert (stats.prefix_cache_hits > 0) == (pooling == "last")
            assert stats.num_free_blocks == stats.num_blocks and stats.num_generation_tokens == 0


def test_same_bits_beside_others_and_under_preemption(model: Path) -> None:
    """Prompts that are pooled and sequences that are sampled neither disturb nor notice each other."""
    work = requests(24)
    asked = [PoolingParams(pooling=POOLINGS[number % 2]) for number in range(len(prompts()))]
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES) as llm:
        texts = [essence(llm.generate(*request, use_tqdm=False)[0]) for request in work]
        vectors = [llm.embed(*one, use_tqdm=False)[0].outputs for one in zip(prompts(), asked, strict=True)]
    small = {"max_model_len": 160, "kv_cache_memory_bytes": 14 * block_bytes(model), "max_num_batched_tokens": 40}
    with LLM(model, max_num_seqs=40, **small) as llm:
        names = llm.enqueue([prompt for prompt, _ in work[:12]], [params for _, params in work[:12]])
        pooled = llm.enqueue(prompts(), asked)
        names += llm.enqueue([prompt for prompt, _ in work[12:]], [params for _, params in work[12:]])
        while llm.has_unfinished():
            llm.step()
        assert [essence(llm.collect(name)[-1]) for name in names] == texts
        assert [llm.collect(name)[-1].embedding for name in pooled] == [one.embedding for one in vectors]
        assert llm.client.stats().num_preemptions > 0


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_is_preempted_in_the_middle_begins_anew(pooling: Pooling, model: Path) -> None:
    params = PoolingParams(pooling=pooling)
    with LLM(model, kv_cache_memory_bytes=CACHE_BYTES, max_num_batched_tokens=13, max_num_seqs=13) as llm:
        expected = embed(llm, prompts(), pooling=pooling)
        client: Any = llm.client
        names = llm.enqueue(prompts(), params)
        for number in range(1000):
            if not llm.has_unfinished():
                break
            llm.step()
            if number % 10 == 7:
                client._core._scheduler.suspend()
        assert [llm.collect(name)[-1].embedding for name in names] == expected
        assert llm.client.stats().num_preemptions > 0


def test_dimensions_are_the_first_ones_scaled_again(llm: LLM) -> None:
    [raw] = embed(llm, [[5, 6, 7]], normalize=False)
    [whole] = embed(llm, [[5, 6, 7]])
    [cut] = embed(llm, [[5, 6, 7]], dimensions=10)
    [cut_only] = embed(llm, [[5, 6, 7]], dimensions=10, normalize=False)
    assert len(raw) == llm.config.model.hidden_size and cut_only == raw[:10]
    assert math.hypot(*whole) == pytest.approx(1, abs=1e-6) and math.hypot(*cut) == pytest.approx(1, abs=1e-6)
    assert np.allclose(whole, np.array(raw) / math.hypot(*raw)) and np.allclose(
        cut, raw[:10] / np.hypot.reduce(raw[:10])
    )
    assert all(value == np.float32(value) for vector in (raw, whole, cut) for value in vector)


def test_what_embed_returns(llm: LLM) -> None:
    shown: list[dict[str, Any]] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            shown.append(options)

        def __getattr__(self, name: str) -> Any:
            return lambda *values: None

    outputs = llm.embed(["The dog", [5, 6], {"prompt_token_ids": [7]}], use_tqdm=Bar)
    assert [one.prompt_token_ids for one in outputs[1:]] == [[5, 6], [7]] and shown[0]["total"] == 3
    assert all(one.finished and one.outputs.hidden_size == llm.config.model.hidden_size for one in outputs)
    assert llm.embed("The dog", use_tqdm=False)[0].outputs == outputs[0].outputs
    # None is the last token's, and each prompt may have its own.
    both = [PoolingParams(pooling="mean"), PoolingParams()]
    mean, last = llm.embed([[5, 6], [5, 6]], both, use_tqdm=False)
    assert last.outputs == outputs[1].outputs != mean.outputs


def test_a_prompt_may_fill_the_context(llm: LLM) -> None:
    full = [3 + position % 300 for position in range(96)]
    assert len(embed(llm, [full], pooling="mean")[0]) == llm.config.model.hidden_size
    with pytest.raises(PromptTooLongError, match="is 96 tokens, which leaves 96 for the prompt, but it has 97"):
        embed(llm, [[*full, 3]])
    long = [9, *full]
    assert embed(llm, [long], truncate_prompt_tokens=-1) == embed(llm, [full])
    assert embed(llm, [long], truncate_prompt_tokens=5) == embed(llm, [full[-5:]])


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ({"pooling": "max"}, "pooling"),
        ({"pooling": 1}, "pooling"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"dimensions": 1000}, "dimensions"),
        ({"normalize": 1}, "normalize"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ],
)
def test_bad_parameters(llm: LLM, bad: dict[str, Any], param: str) -> None:
    with pytest.raises(ParameterError) as caught:
        embed(llm, [[5]], **bad)
    assert caught.value.param == param and not llm.has_unfinished()


def test_bad_calls(llm: LLM) -> None:
    with pytest.raises(RequestError, match="2 prompts, but pooling_params has 1"):
        llm.embed([[5], [6]], [PoolingParams()], use_tqdm=False)
    with pytest.raises(ParameterError, match="not SamplingParams"):
        llm.embed([[5]], GREEDY, use_tqdm=False)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="empty"):
        llm.embed([[]], use_tqdm=False)
    assert not llm.has_unfinished()


def test_a_request_that_was_ended_has_no_embedding() -> None:
    with pytest.raises(RequestFailedError, match="Request 7 was ended"):
        EmbeddingRequestOutput.from_output(RequestOutput("7", None, [1], None, [], finished=True))


def test_the_pass_is_recorded_when_first_needed(model: Path) -> None:
    with LLM(model, kv_cache_memory_bytes=1 << 22) as llm:
        client: Any = llm.client
        pooler = client._core._executor._runner._pooler
        llm.generate([[5, 6]], GREEDY, use_tqdm=False)
        assert pooler._graph is None
        llm.embed([[5, 6]], use_tqdm=False)
        assert pooler._graph is not None
        # A worker is told with the next step that a sequence has ended.
        llm.generate([[5, 6]], GREEDY, use_tqdm=False)
        assert not pooler._poolings and not pooler._sums
    with pytest.raises(EngineDeadError):
        llm.embed([[5, 6]], use_tqdm=False)
