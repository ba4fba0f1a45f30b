"""Models whose ops depend on the data: gone through in each step, and said so."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from interleaf import LLM, SamplingParams
from interleaf.models import llama
from interleaf.ops import LayerCache, ModelInput
from tests.loader import tiny
from tests.worker.test_runner import outputs

Llama = llama.LlamaForCausalLM


class Undecided(Llama):
    """Which layers come before the last depends on the first token of the step."""

    recordable = False

    def forward(self, inputs: ModelInput, caches: Sequence[LayerCache]) -> llama.Unfinished:
        residual = self.embedding(inputs)
        layers = list(zip(self.layers[:-1], caches[:-1], strict=True))
        for layer, cache in layers if inputs.token_ids[0] % 2 else []:
            residual = layer.finish(layer.attend(residual, cache, inputs), residual)
        return residual, self.layers[-1].attend(residual, caches[-1], inputs)


def test_a_model_that_branches_on_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.tiny_llama(tmp_path / "llama")
    usual = outputs(path, reference=False)
    monkeypatch.setattr(llama, "LlamaForCausalLM", Undecided)
    expected, actual = outputs(path, reference=True), outputs(path, reference=False)
    assert {key: tokens for key, (tokens, _) in actual.items()} == {
        key: tokens for key, (tokens, _) in expected.items()
    }
    assert actual != usual


def test_op_by_op_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny.tiny_llama(tmp_path / "llama")
    params = SamplingParams(max_tokens=12, seed=1, logprobs=1, ignore_eos=True)
    prompts = [[5, 6, 7], list(range(3, 60))]

    def run() -> list[tuple[list[int], float | None]]:
        with LLM(path, kv_cache_memory_bytes=1 << 22, max_num_batched_tokens=40) as llm:
            done = llm.generate(prompts, params, use_tqdm=False)
            return [(output.outputs[0].token_ids, output.outputs[0].cumulative_logprob) for output in done]

    recorded = run()
    assert "op by op" not in caplog.text
    monkeypatch.setattr(Llama, "recordable", False)
    with caplog.at_level(logging.WARNING):
        assert run() == recorded
    assert caplog.text.count("LlamaForCausalLM cannot be recorded: each step runs op by op") == 1
