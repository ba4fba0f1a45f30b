"""How families of models write their reasoning, and which family a chat template belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from interleaf.reasoning import ReasoningMarkers

if TYPE_CHECKING:
    from interleaf.frontend.tokenizer import Tokenizer

PROMPT_END_TOKENS = 32
"""At the end of a prompt that is looked at for a marker."""


@dataclass(frozen=True, slots=True)
class ReasoningFamily:
    """Marks of reasoning as text.

    Fields:
        starts, ends: in pairs; the first pair is the one in use today.
        always: the reasoning is there even if no marker begins it.
        forced_end: what is written to end the reasoning early, if that is more than its end.
    """

    starts: tuple[str, ...]
    ends: tuple[str, ...]
    always: bool = False
    forced_end: str | None = None

    def state_behind(self, prompt: str) -> bool | None:
        """Whether reasoning is going on at the end of a prompt; None if the prompt does not tell."""
        end = prompt.rstrip()
        if end.endswith(self.starts):
            return True
        return False if end.endswith(self.ends) else None

    def markers(self, tokenizer: Tokenizer, prompt: str) -> ReasoningMarkers | None:
        """The marks as tokens, for an answer to `prompt`; None where the prompt has ended the reasoning."""
        state = self.state_behind(prompt)
        if state is False:
            return None
        spelled = [
            (tokenizer.encode(start, add_special_tokens=False), tokenizer.encode(end, add_special_tokens=False))
            for start, end in zip(self.starts, self.ends, strict=True)
        ]
        # A marker that the model knows is one token.
        start, end = min(spelled, key=lambda pair: len(pair[1]) > 1)
        if self.forced_end is not None:
            end = tokenizer.encode(self.forced_end, add_special_tokens=False)
        return ReasoningMarkers(start, end, bool(state or self.always)) if end else None


THINK = ReasoningFamily(("<think>",), ("</think>",))

FAMILIES = {
    "deepseek_r1": ReasoningFamily(("<think>",), ("</think>",), always=True),
    "qwen3": THINK,
    "mistral": ReasoningFamily(("[THINK]", "<think>"), ("[/THINK]", "</think>")),
    "granite": ReasoningFamily(
        ("Here is my thought process:", "Here's my thought process:"),
        ("Here is my response:", "Here's my response:"),
    ),
    "openai_gptoss": ReasoningFamily(
        ("<|channel|>analysis<|message|>",),
        ("<|channel|>final<|message|>",),
        forced_end="<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
}


def family_of(template: str | None) -> str | None:
    """The family whose reasoning a chat template speaks of."""
    if template is None:
        return None
    if "<|channel|>" in template:
        return "openai_gptoss"
    if "[THINK]" in template:
        return "mistral"
    if "my thought process" in template:
        return "granite"
    if "<think>" in template or "</think>" in template:
        # DeepSeek's own templates write full-width bars.
        return "deepseek_r1" if "<｜" in template else "qwen3"
    return None


def markers_behind(tokenizer: Tokenizer, prompt_token_ids: list[int]) -> ReasoningMarkers | None:
    """The marks of the model's own family for an answer to a prompt; None where there will be no reasoning."""
    family = family_of(tokenizer.chat_template)
    if family is None:
        return None
    return FAMILIES[family].markers(tokenizer, tokenizer.decode(prompt_token_ids[-PROMPT_END_TOKENS:]))
