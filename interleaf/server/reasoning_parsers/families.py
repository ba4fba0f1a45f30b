"""Reasoning between two markers, as most models write it."""

from __future__ import annotations

from interleaf.server.reasoning_parsers.parser import ReasoningParser


class Qwen3Reasoning(ReasoningParser):
    """`<think>...</think>`, or no reasoning at all: Qwen3, QwQ, SmolLM3 and others."""

    starts = ("<think>",)
    ends = ("</think>",)


class DeepSeekR1Reasoning(Qwen3Reasoning):
    """The same, but reasoning is always there, also where its beginning is not written."""

    always = True


class MistralReasoning(ReasoningParser):
    """`[THINK]...[/THINK]`: Magistral; its first version wrote `<think>`."""

    starts = ("[THINK]", "<think>")
    ends = ("[/THINK]", "</think>")


class GraniteReasoning(ReasoningParser):
    """Sentences take the place of markers: Granite 3.2."""

    starts = ("Here is my thought process:", "Here's my thought process:")
    ends = ("Here is my response:", "Here's my response:")
