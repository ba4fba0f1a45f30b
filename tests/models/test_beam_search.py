"""Beam search against Transformers' `generate(num_beams=...)`: the same texts in the same order, with its scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interleaf import LLM, BeamSearchOutput, BeamSearchParams, SamplingParams
from interleaf.params import BeamSettings
from tests.loader import tiny
from tests.models.transformers_peer import load_peer

WIDTH = 4
CASES: list[dict[str, Any]] = [
    {},
    {"length_penalty": 2.0},
    {"length_penalty": 0.0, "early_stopping": "never"},
    {"length_penalty": -0.7},
    {"early_stopping": True},
    {"length_penalty": 1.5, "early_stopping": "never"},
    {"length_penalty": 0.4, "early_stopping": True},
]
"""A random model hardly ever writes its end-of-sequence token, so other tokens are made to end texts as well."""


def peer_search(
    peer: Any, prompt: list[int], width: int, max_tokens: int, stops: list[int] | None, **options: Any
) -> tuple[list[list[int]], list[float]]:
    """Texts without what pads them, and their scores."""
    with torch.inference_mode():
        found = peer.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    texts = []
    for row in found.sequences[:, len(prompt) :].tolist():
        end = next((place + 1 for place, token in enumerate(row) if token in (stops or ())), len(row))
        texts.append(row[:end])
    return texts, found.sequences_scores.tolist()


def scores(output: BeamSearchOutput, length_penalty: float) -> list[float]:
    return [one.cum_logprob / len(one.logprobs) ** length_penalty for one in output.sequences]


def check(peer: Any, prompt: list[int], output: BeamSearchOutput, width: int, stops: list[int], **options: Any) -> None:
    texts, expected = peer_search(peer, prompt, width, stops=stops, **options)
    np.testing.assert_allclose(scores(output, options.get("length_penalty", 1.0)), expected, atol=1e-4)
    assert [one.tokens[len(prompt) :] for one in output.sequences] == texts
    for one in output.sequences:
        told = [entry[token].logprob for entry, token in zip(one.logprobs, one.tokens[len(prompt) :], strict=True)]
        assert sum(told) == one.cum_logprob
        assert one.finish_reason == ("stop" if one.tokens[-1] in stops else "length")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_llama(tmp_path_factory.mktemp("beams"), seed=1)


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model, dtype="float32", kv_cache_memory_bytes=1 << 24) as llm:
        yield llm


def test_fifty_prompts_equal_transformers(model: Path, llm: LLM) -> None:
    rng = np.random.default_rng(0)
    peer = load_peer(model)
    stops = [2, *range(100, 130)]
    prompts = [rng.integers(3, 384, length).tolist() for length in rng.integers(1, 50, 50)]
    ended = 0
    for case, options in enumerate(CASES):
        some = prompts[case :: len(CASES)]
        params = BeamSearchParams(WIDTH, 12, stop_token_ids=stops, include_stop_str_in_output=True, **options)
        for prompt, output in zip(some, llm.beam_search(some, params), strict=True):
            check(peer, prompt, output, WIDTH, stops, max_tokens=12, **options)
            ended += sum(one.finish_reason == "stop" for one in output.sequences)
    assert 50 < ended < 190, "texts end in both ways"


@pytest.mark.parametrize("width", [1, 2, 7])
def test_other_widths(model: Path, llm: LLM, width: int) -> None:
    stops = [2, *range(200, 260)]
    params = BeamSearchParams(width, 9, stop_token_ids=stops, include_stop_str_in_output=True)
    [output] = llm.beam_search([[5, 6, 7]], params)
    if width > 1:
        check(load_peer(model), [5, 6, 7], output, width, stops, max_tokens=9)
    else:
        assert len(output.sequences) == 1


def test_what_changes_logits_changes_the_scores_as_in_transformers(model: Path, llm: LLM) -> None:
    """Penalties and masks work on logprobs there."""
    peer, prompt = load_peer(model), [5, 6, 7, 5, 6, 7]
    params = SamplingParams(
        n=WIDTH,
        max_tokens=10,
        min_tokens=4,
        repetition_penalty=1.3,
        temperature=1.0,
        logprobs=0,
        stop_token_ids=list(range(200, 300)),
        beam=BeamSettings(WIDTH),
    )
    [output] = llm.generate([prompt], params, use_tqdm=False)
    stops = [2, *range(200, 300)]
    texts, expected = peer_search(peer, prompt, WIDTH, 10, stops, repetition_penalty=1.3, min_new_tokens=4)
    assert [one.token_ids for one in output.outputs] == texts
    found = [one.cumulative_logprob / len(one.token_ids) for one in output.outputs]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_beside_speculation_and_sampling(model: Path, llm: LLM) -> None:
    params = BeamSearchParams(WIDTH, 20, ignore_eos=True).sampling_params(2)
    other = SamplingParams(temperature=0.7, seed=3, max_tokens=30, ignore_eos=True, logprobs=1)
    prompts, asked = [[5, 6, 7] * 5, [8, 9] * 9, [5, 6, 7] * 5], [params, other, other]
    alone = [llm.generate([one], two, use_tqdm=False)[0] for one, two in zip(prompts, asked, strict=True)]
    drafts = {"method": "ngram", "num_speculative_tokens": 4}
    with LLM(model, dtype="float32", kv_cache_memory_bytes=1 << 24, speculative_config=drafts) as drafting:
        together = drafting.generate(prompts, asked, use_tqdm=False)
    assert [output.outputs for output in together] == [output.outputs for output in alone]


def test_the_built_in_model_equals_transformers(builtin_gguf: Path) -> None:
    prompts = ["The capital of France is", "Once upon a time", "def add(a, b):"]
    params = BeamSearchParams(WIDTH, 12, include_stop_str_in_output=True)
    with LLM(dtype="float32", kv_cache_memory_bytes=1 << 28) as llm:
        token_ids = [llm.get_tokenizer().encode(prompt) for prompt in prompts]
        outputs = llm.beam_search(prompts, params)
        eos = sorted(llm._processor.eos_token_ids)
        texts = [one.text for one in outputs[0].sequences]
    peer = load_peer(builtin_gguf)
    for prompt, output in zip(token_ids, outputs, strict=True):
        check(peer, prompt, output, WIDTH, eos, max_tokens=12)
    assert all(text.startswith("The capital of France is") for text in texts)
    assert "Paris" in texts[0]
