"""`[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or `[TOOL_CALLS]name[ARGS]{...}` since Mistral Small 3.2."""

from __future__ import annotations

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser, short_id

MARKER = "[TOOL_CALLS]"


class MistralParser(ToolParser):
    markers = (MARKER,)

    @staticmethod
    def call_id() -> str:
        return short_id()

    def read_call(self) -> Steps[None]:
        yield from self.expect(MARKER)
        yield from self.space()
        if (yield from self.peek(1)) in ("[", "{"):
            yield from self.read_calls()
            return
        name: list[str] = []
        marker = yield from self.until("[CALL_ID]", "[ARGS]", "{", MARKER, emit=name.append)
        if marker == "[CALL_ID]":
            yield from self.until("[ARGS]", "{", MARKER, emit=lambda text: None)
        yield from self.literal("[ARGS]")
        yield from self.space()
        if (yield from self.peek(1)) != "{":
            self.malformed()
        self.begin_call("".join(name).strip())
        yield from self.read_arguments()
        self.end_call()
