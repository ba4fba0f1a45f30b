"""`{"name": ..., "parameters": {...}}` as the whole answer, perhaps behind `<|python_tag|>`: Llama 3.1 to 4.

Several calls are separated by semicolons.
"""

from __future__ import annotations

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser
from interleaf.server.tool_parsers.strict import Format, StrictCalls, const, either, maybe, pattern, sequence

PYTHON_TAG = "<|python_tag|>"


class Llama3JsonParser(ToolParser):
    markers = (PYTHON_TAG,)
    at_start = ("{", "[")

    @classmethod
    def answer_format(cls, calls: StrictCalls) -> Format:
        called = sequence(maybe(const(PYTHON_TAG)), calls.several(calls.call("parameters"), "; "))
        return either(pattern(r"(?s:\s*([^\s{\[].*)?)"), called)

    def read_call(self) -> Steps[None]:
        yield from self.expect(PYTHON_TAG)
        yield from self.read_bare()

    def read_bare(self) -> Steps[None]:
        yield from self.read_calls()
        while True:
            yield from self.space()
            if not (yield from self.literal(";", PYTHON_TAG)):
                return
            yield from self.space()
            if (yield from self.peek(1)) not in ("{", "["):
                return
            yield from self.read_calls()
