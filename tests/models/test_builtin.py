"""The built-in model: 64 varied prompts against Transformers, and sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from interleaf import LLM, SamplingParams
from tests.models.transformers_peer import check_greedy, load_peer

SUBJECTS = ["the sea", "a fox", "Python", "Ελλάδα", "1984", "bread", "квант", "日本"]
FORMS = [
    "Tell me about {}.",
    "{}",
    "Write a poem on {}:\n\n",
    "Q: What is {}?\nA:",
    "def describe():\n    return '{}",
    "1, 2, 3, {}, 5,",
    "Once upon a time there was {} and " + "then " * 60,
    "<|im_start|>user\nWho made {}?<|im_end|>\n<|im_start|>assistant\n",
]
PROMPTS = [form.format(subject) for form in FORMS for subject in SUBJECTS]


@pytest.fixture(scope="module")
def llm(builtin_gguf: Path):
    with LLM(dtype="float32", kv_cache_memory_bytes=1 << 30) as llm:
        yield llm


def test_greedy_text_equals_transformers(llm: LLM, builtin_gguf: Path) -> None:
    assert len(PROMPTS) == 64
    params = SamplingParams(temperature=0, max_tokens=16, logprobs=1, prompt_logprobs=1)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    peer = load_peer(builtin_gguf)
    for output in outputs:
        check_greedy(peer, output)


def test_it_knows_the_capital_of_france() -> None:
    with LLM() as llm:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        answer = llm.chat(question, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    assert "Paris" in answer[0].outputs[0].text
