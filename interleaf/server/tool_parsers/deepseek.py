"""DeepSeek V3, R1 and V3.1: calls between tokens that are written with full-width bars.

V3: `<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, a line end, then the arguments in a JSON code block;
V3.1: `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}`. Both end with `<｜tool▁call▁end｜>`.
"""

from __future__ import annotations

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser
from interleaf.server.tool_parsers.strict import SPACE, Format, StrictCalls, const, either, maybe, sequence

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


class DeepSeekParser(ToolParser):
    markers = (CALLS_BEGIN, BEGIN)

    @classmethod
    def answer_format(cls, calls: StrictCalls) -> Format:
        fenced = calls.each(
            lambda name: [const(f"function{SEPARATOR}{name}\n```json\n"), calls.arguments(name), const("\n```")]
        )
        plain = calls.each(lambda name: [const(f"{name}{SEPARATOR}"), calls.arguments(name)])
        one = sequence(either(fenced, plain), const(END), SPACE)
        return calls.in_text({CALLS_BEGIN: sequence(const(BEGIN), calls.several(one, BEGIN), maybe(const(CALLS_END)))})

    def read_call(self) -> Steps[None]:
        yield from self.literal(CALLS_BEGIN)
        yield from self.space()
        yield from self.expect(BEGIN)
        while True:
            yield from self._read_one()
            yield from self.space()
            if (yield from self.literal(BEGIN, CALLS_END)) != BEGIN:
                return

    def _read_one(self) -> Steps[None]:
        head: list[str] = []
        if not (yield from self.until(SEPARATOR, END, emit=head.append)):
            self.malformed()
        yield from self.expect(SEPARATOR)
        name = "".join(head).strip()
        fenced = name == "function"
        if fenced:
            head.clear()
            yield from self.until("\n", "```", END, emit=head.append)
            name = "".join(head).strip()
            yield from self.space()
            yield from self.expect("```json", "```")
        yield from self.space()
        if (yield from self.peek(1)) != "{":
            self.malformed()
        self.begin_call(name)
        yield from self.read_arguments()
        self.end_call()
        yield from self.space()
        yield from self.literal("```")
        yield from self.space()
        yield from self.literal(END)
