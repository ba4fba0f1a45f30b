"""Parsers of reasoning by name; a plug-in adds its own with `register`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from interleaf.frontend.reasoning_families import FAMILIES, ReasoningFamily
from interleaf.server.reasoning_parsers.openai_gptoss import GptOssReasoning
from interleaf.server.reasoning_parsers.parser import ReasoningParser

__all__ = ["REASONING_PARSERS", "ReasoningKind", "ReasoningParser", "register"]


@dataclass(frozen=True, slots=True)
class ReasoningKind:
    """A way of reasoning: its marks, and what reads them."""

    family: ReasoningFamily
    parser: Callable[[ReasoningFamily, bool], ReasoningParser] = ReasoningParser


REASONING_PARSERS: dict[str, ReasoningKind] = {
    name: ReasoningKind(family, GptOssReasoning if name == "openai_gptoss" else ReasoningParser)
    for name, family in FAMILIES.items()
}
REASONING_PARSERS |= {
    "deepseek_v3": REASONING_PARSERS["qwen3"],
    "glm45": REASONING_PARSERS["qwen3"],
    "gpt_oss": REASONING_PARSERS["openai_gptoss"],
    "olmo3": REASONING_PARSERS["deepseek_r1"],
}


def register(
    name: str, family: ReasoningFamily, parser: Callable[[ReasoningFamily, bool], ReasoningParser] = ReasoningParser
) -> None:
    """Make a parser known under a name, for `--reasoning-parser`; plug-ins call this."""
    REASONING_PARSERS[name] = ReasoningKind(family, parser)
