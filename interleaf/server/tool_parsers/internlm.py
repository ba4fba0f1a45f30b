"""`<|action_start|><|plugin|>{"name": ..., "parameters": {...}}<|action_end|>`: InternLM 2.5."""

from __future__ import annotations

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser


class InternLmParser(ToolParser):
    markers = ("<|action_start|>",)

    def read_call(self) -> Steps[None]:
        yield from self.expect("<|action_start|>")
        yield from self.space()
        yield from self.expect("<|plugin|>")
        yield from self.read_calls()
        yield from self.space()
        yield from self.literal("<|action_end|>")
