"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen2.5, Qwen3, Granite 4 and many others."""

from __future__ import annotations

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser
from interleaf.server.tool_parsers.strict import SPACE, Format, StrictCalls, const, sequence


class HermesParser(ToolParser):
    markers = ("<tool_call>",)

    @classmethod
    def answer_format(cls, calls: StrictCalls) -> Format:
        return calls.in_text({"<tool_call>": sequence(SPACE, calls.call(), SPACE, const("</tool_call>"))})

    def read_call(self) -> Steps[None]:
        yield from self.expect("<tool_call>")
        yield from self.read_calls()
        yield from self.space()
        yield from self.literal("</tool_call>")
