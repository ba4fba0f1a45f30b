"""`<|action_start|><|plugin|>{"name": ..., "parameters": {...}}<|action_end|>`: InternLM 2.5."""

from __future__ import annotations

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser
from interleaf.server.tool_parsers.strict import SPACE, Format, StrictCalls, const, sequence


class InternLmParser(ToolParser):
    markers = ("<|action_start|>",)

    @classmethod
    def answer_format(cls, calls: StrictCalls) -> Format:
        call = sequence(SPACE, calls.call("parameters"), SPACE, const("<|action_end|>"))
        return calls.in_text({"<|action_start|>": sequence(SPACE, const("<|plugin|>"), call)})

    def read_call(self) -> Steps[None]:
        yield from self.expect("<|action_start|>")
        yield from self.space()
        yield from self.expect("<|plugin|>")
        yield from self.read_calls()
        yield from self.space()
        yield from self.literal("<|action_end|>")
