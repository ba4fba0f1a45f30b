"""`functools[{"name": ..., "arguments": {...}}]` or `<|tool_call|>[...]<|/tool_call|>`: Phi-4-mini."""

from __future__ import annotations

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser


class Phi4MiniJsonParser(ToolParser):
    markers = ("functools[", "<|tool_call|>")

    def read_call(self) -> Steps[None]:
        yield from self.expect("functools", "<|tool_call|>")
        yield from self.read_calls()
        yield from self.space()
        yield from self.literal("<|/tool_call|>")
