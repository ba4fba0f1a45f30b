"""Which family a template belongs to, and where reasoning stands at the end of a prompt."""

from __future__ import annotations

import pytest

from interleaf.frontend.processor import Processor, RequestInput
from interleaf.frontend.reasoning_families import FAMILIES, family_of
from interleaf.params import SamplingParams
from interleaf.reasoning import Phase, ReasoningMarkers, ReasoningTracker
from tests.fake_engine import FakeTokenizer, engine_config


@pytest.mark.parametrize(
    ("template", "family"),
    [
        (None, None),
        ("{{ messages }}", None),
        ("...{% if enable_thinking %}...<think>\n\n</think>", "qwen3"),
        ("<｜User｜>...<｜Assistant｜><think>", "deepseek_r1"),
        ("[SYSTEM_PROMPT]...[THINK]...[/THINK]", "mistral"),
        ("Here is my thought process: ...", "granite"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "openai_gptoss"),
    ],
)
def test_families_by_template(template: str | None, family: str | None) -> None:
    assert family_of(template) == family


@pytest.mark.parametrize(
    ("family", "prompt", "markers"),
    [
        ("qwen3", "<|im_start|>assistant\n", ReasoningMarkers(list(b"<think>"), list(b"</think>"))),
        ("qwen3", "x<think>\n", ReasoningMarkers(list(b"<think>"), list(b"</think>"), True)),
        ("qwen3", "x<think>\n\n</think>\n\n", None),
        ("deepseek_r1", "x", ReasoningMarkers(list(b"<think>"), list(b"</think>"), True)),
        ("deepseek_r1", "x</think>", None),
        ("mistral", "x", ReasoningMarkers(list(b"[THINK]"), list(b"[/THINK]"))),
    ],
)
def test_markers(family: str, prompt: str, markers: ReasoningMarkers | None) -> None:
    assert FAMILIES[family].markers(FakeTokenizer(), prompt) == markers  # type: ignore[arg-type]


def test_a_budget_finds_the_models_markers() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = "<think>"
    processor = Processor(engine_config(), tokenizer, {})  # type: ignore[arg-type]

    def markers(prompt: str, budget: int | None = 2) -> ReasoningMarkers | None:
        params = SamplingParams(thinking_token_budget=budget)
        return processor.process(RequestInput(prompt, params)).engine_request.params.reasoning_markers

    assert markers("hi<think>") == ReasoningMarkers(list(b"<think>"), list(b"</think>"), True)
    assert markers("hi") == ReasoningMarkers(list(b"<think>"), list(b"</think>"))
    assert markers("hi</think>") is None and markers("hi", None) is None


@pytest.mark.parametrize("text", ["aab", "aaab", "aaaab", "xaabaab", "", "a", "ba", "aabx", "aaba"])
def test_the_end_is_found_wherever_it_begins(text: str) -> None:
    """Against a search in the whole text; the marker repeats itself in part."""
    tracker = ReasoningTracker(ReasoningMarkers([], list(b"aab"), True), text.encode())
    end = text.find("aab")
    assert tracker.is_over == (end >= 0)
    assert tracker.num_tokens == (len(text) if end < 0 else end)
    if end < 0:
        assert tracker.phase is Phase.REASONING
        assert tracker.num_end_tokens == max(count for count in range(3) if text.endswith("aab"[:count]))
