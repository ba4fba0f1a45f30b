"""Reasoning with a budget, and a structured answer behind it, through a whole engine."""

from __future__ import annotations

from typing import Any

import pytest

from interleaf import LLM, SamplingParams, StructuredOutputsParams
from interleaf.reasoning import ReasoningMarkers
from tests.loader import tiny
from tests.test_same_bits import block_bytes

BUDGET = 6
CHOICES = ["yes indeed", "no"]


@pytest.mark.parametrize("is_open", [True, False])
def test_a_budget_then_a_choice(tmp_path_factory: pytest.TempPathFactory, is_open: bool) -> None:
    """The same tokens alone, together, as one of n, and in a cache so small that sequences preempt one another."""
    path = tiny.tiny_llama(tmp_path_factory.mktemp("reasoning"))

    def params(seed: int, **more: Any) -> SamplingParams:
        return SamplingParams(
            temperature=1.0,
            seed=seed,
            max_tokens=40,
            thinking_token_budget=BUDGET,
            reasoning_markers=markers,
            structured_outputs=StructuredOutputsParams(choice=CHOICES),
            **more,
        )

    prompt = list(range(5, 60))
    with LLM(path, kv_cache_memory_bytes=1 << 22) as llm:
        tokenizer = llm.get_tokenizer()
        end = tokenizer.encode("</think>", add_special_tokens=False)
        start = tokenizer.encode("<think>", add_special_tokens=False)
        markers = ReasoningMarkers(start, end, is_open)
        alone = [llm.generate(prompt, params(seed), use_tqdm=False)[0].outputs[0] for seed in range(6)]
        [forked] = llm.generate(prompt, params(0, n=6), use_tqdm=False)
    for one in alone:
        ids = one.token_ids[: -1 if one.finish_reason == "stop" else None]
        answer = tokenizer.decode(ids)
        if is_open:
            assert ids[BUDGET : BUDGET + len(end)] == end
            answer = tokenizer.decode(ids[BUDGET + len(end) :])
        assert one.finish_reason == "stop" and answer.split("</think>")[-1] in CHOICES
    assert [one.token_ids for one in forked.outputs] == [one.token_ids for one in alone]
    with LLM(path, kv_cache_memory_bytes=10 * block_bytes(path), max_model_len=128) as llm:
        crowded = llm.generate([prompt] * 6, [params(seed) for seed in range(6)], use_tqdm=False)
        assert llm.client.stats().num_preemptions > 0 or not is_open
    assert [one.outputs[0].token_ids for one in crowded] == [one.token_ids for one in alone]
