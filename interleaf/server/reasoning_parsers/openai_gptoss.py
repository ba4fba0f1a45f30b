"""gpt-oss: reasoning is what is said on the channel `analysis`."""

from __future__ import annotations

from interleaf.server.reasoning_parsers.parser import ReasoningParser
from interleaf.server.text_reader import Content, MalformedError, Reasoning, Steps
from interleaf.server.tool_parsers.gpt_oss import CHANNEL, ENDS, MESSAGE, START, read_header


class GptOssReasoning(ReasoningParser):
    """Leaves of the harmony format only what is said to tools, for their parser."""

    def read(self) -> Steps[None]:
        while (yield from self.peek(1)):
            self.record()
            try:
                channel, recipient = yield from read_header(self)
            except MalformedError:
                self._emit_content(self.recorded().removeprefix(START + "assistant"))
                yield from self.literal(*ENDS)
                continue
            self.recorded()
            if recipient:
                self._emit_content(f"{CHANNEL}{channel} to={recipient}{MESSAGE}")
            thinks = channel == "analysis" and not recipient
            yield from self.until(*ENDS, START, emit=self._emit_thought if thinks else self._emit_content)
            end = yield from self.literal(*ENDS)
            if recipient:
                self._emit_content(end)

    def _emit_thought(self, text: str) -> None:
        self.emit(Reasoning(text))

    def _emit_content(self, text: str) -> None:
        if text:
            self.emit(Content(text))
