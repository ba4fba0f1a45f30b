"""`[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or `[TOOL_CALLS]name[ARGS]{...}` since Mistral Small 3.2."""

from __future__ import annotations

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser, short_id
from interleaf.server.tool_parsers.strict import Format, StrictCalls, const, either, maybe, pattern, sequence

MARKER = "[TOOL_CALLS]"


class MistralParser(ToolParser):
    markers = (MARKER,)

    @staticmethod
    def call_id() -> str:
        return short_id()

    @classmethod
    def answer_format(cls, calls: StrictCalls) -> Format:
        listed = sequence(maybe(const(" ")), calls.calls())
        identified = maybe(const("[CALL_ID]"), pattern("[a-zA-Z0-9]{9}"))
        named = calls.each(lambda name: [const(name), identified, const("[ARGS]"), calls.arguments(name)])
        return calls.in_text({MARKER: either(listed, named)})

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
