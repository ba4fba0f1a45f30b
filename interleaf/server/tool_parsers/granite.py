"""`<|tool_call|>[{"name": ..., "arguments": {...}}]`: Granite 3; `<function_call>{...}`: Granite 20B; Granite 4."""

from __future__ import annotations

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser


class GraniteParser(ToolParser):
    markers = ("<|tool_call|>", "<tool_call>", "<function_call>")
    at_start = ("[",)

    def read_call(self) -> Steps[None]:
        yield from self.expect(*self.markers)
        yield from self.read_calls()
        yield from self.space()
        yield from self.literal("</tool_call>", "</function_call>")
