"""`<|tool_call|>[{"name": ..., "arguments": {...}}]`: Granite 3; `<function_call>{...}`: Granite 20B; Granite 4."""

from __future__ import annotations

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser
from interleaf.server.tool_parsers.strict import SPACE, Format, StrictCalls, const, sequence


class GraniteParser(ToolParser):
    markers = ("<|tool_call|>", "<tool_call>", "<function_call>")
    at_start = ("[",)

    @classmethod
    def answer_format(cls, calls: StrictCalls) -> Format:
        return calls.in_text(
            {
                "<|tool_call|>": sequence(SPACE, calls.calls()),
                "<tool_call>": sequence(SPACE, calls.call(), SPACE, const("</tool_call>")),
                "<function_call>": sequence(SPACE, calls.call()),
            }
        )

    def read_call(self) -> Steps[None]:
        yield from self.expect(*self.markers)
        yield from self.read_calls()
        yield from self.space()
        yield from self.literal("</tool_call>", "</function_call>")
