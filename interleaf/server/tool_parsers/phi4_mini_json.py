"""`functools[{"name": ..., "arguments": {...}}]` or `<|tool_call|>[...]<|/tool_call|>`: Phi-4-mini."""

from __future__ import annotations

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser
from interleaf.server.tool_parsers.strict import SPACE, Format, StrictCalls, const, sequence


class Phi4MiniJsonParser(ToolParser):
    markers = ("functools[", "<|tool_call|>")

    @classmethod
    def answer_format(cls, calls: StrictCalls) -> Format:
        return calls.in_text(
            {
                "functools": calls.calls(),
                "<|tool_call|>": sequence(SPACE, calls.calls(), SPACE, const("<|/tool_call|>")),
            }
        )

    def read_call(self) -> Steps[None]:
        yield from self.expect("functools", "<|tool_call|>")
        yield from self.read_calls()
        yield from self.space()
        yield from self.literal("<|/tool_call|>")
