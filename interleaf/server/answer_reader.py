"""One sequence's answer as clients shall see it: reasoning, then content and calls, while it is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from interleaf.outputs import CompletionOutput
from interleaf.server.reasoning_parsers import ReasoningParser
from interleaf.server.text_reader import (
    CallArguments,
    CallBegin,
    CallDropped,
    CallEnd,
    Content,
    Piece,
    Reasoning,
)
from interleaf.server.tool_parsers import ToolParser


@dataclass(slots=True)
class Call:
    """A call of a tool, as far as it was written; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A new call, the `index`-th of its answer; its arguments are still empty."""

    index: int
    call: Call


@dataclass(frozen=True, slots=True)
class CallGrown:
    """A further piece of the arguments of call `index`."""

    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class CallDone:
    """Call `index` is complete; or dropped: it was none, and what was written of it is told as content."""

    index: int
    dropped: bool = False


News = Reasoning | Content | CallBegun | CallGrown | CallDone


@dataclass(slots=True)
class Answer:
    """All of an answer; None where a part was not written."""

    reasoning: str | None = None
    content: str | None = None
    calls: list[Call] = field(default_factory=list)


class AnswerReader:
    """Puts parsers behind one another: what is no reasoning may be a call, what is no call is content.

    Whitespace that stands between content and a call is part of neither.

    Args:
        reasoning: None where there will be none.
        tools: None where calls are not looked for.
        single_call: leave out calls behind the first one.
        tells_reasoning: False leaves it out.

    Attributes:
        answer: all that was told so far.
        token_ids: of the answer so far, where there may be reasoning.
        has_reasoned: whether there was any, told or not.
    """

    def __init__(
        self,
        reasoning: ReasoningParser | None,
        tools: ToolParser | None,
        single_call: bool = False,
        tells_reasoning: bool = True,
    ) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._single_call = single_call
        self._tells_reasoning = tells_reasoning
        self._index = -1
        """Of the last call that begun; one that was dropped keeps its number."""
        self._space = ""
        """Held back: a call may follow it, which would make it disappear."""
        self._behind_call = False
        self._hidden = False
        """The call that is written now is left out."""
        self.answer = Answer()
        self.token_ids: list[int] = []
        self.has_reasoned = False

    def feed(self, text: str, finished: bool = False) -> list[News]:
        """Add text to what was fed before; returns what is known by then and was not told yet."""
        pieces: list[Piece] = [Content(text)] if text else []
        if self._reasoning is not None:
            pieces = self._reasoning.feed(text) + (self._reasoning.finish() if finished else [])
        news: list[News] = []
        for piece in pieces:
            if isinstance(piece, Content):
                news += self._content(piece.text)
            elif isinstance(piece, Reasoning):
                self.has_reasoned = True
                if self._tells_reasoning:
                    self.answer.reasoning = (self.answer.reasoning or "") + piece.text
                    news.append(piece)
        if finished:
            news += self._from_tools(self._tools.finish()) if self._tools is not None else []
            news += self._told(self._space)
        return news

    def follow(self, output: CompletionOutput) -> list[News]:
        """`feed` with what a sequence brings; a whole answer at once is read in the same way."""
        if self._reasoning is not None:
            self.token_ids += output.token_ids
        return self.feed(output.text, output.finished)

    def _content(self, text: str) -> list[News]:
        return self._told(text) if self._tools is None else self._from_tools(self._tools.feed(text))

    def _from_tools(self, pieces: Iterable[Piece]) -> list[News]:
        news: list[News] = []
        for piece in pieces:
            news += self._from_tool(piece)
        return news

    def _from_tool(self, piece: Piece) -> list[News]:
        calls = self.answer.calls
        if isinstance(piece, Content):
            return self._spaced(piece.text)
        if isinstance(piece, CallBegin):
            self._hidden = self._single_call and bool(calls)
            if not self._hidden and self._tools is not None:
                calls.append(Call(self._tools.call_id(), piece.name))
                self._index += 1
                return [CallBegun(self._index, calls[-1])]
        elif self._hidden:
            return []
        elif isinstance(piece, CallArguments):
            calls[-1].arguments += piece.text
            return [CallGrown(self._index, piece.text)]
        elif isinstance(piece, CallEnd):
            self._space, self._behind_call = "", True
            return [CallDone(self._index)]
        elif isinstance(piece, CallDropped):
            calls.pop()
            return [CallDone(self._index, dropped=True), *self._spaced(piece.text)]
        return []

    def _spaced(self, text: str) -> list[News]:
        if self._behind_call:
            text = text.lstrip()
        text = self._space + text
        told = text.rstrip()
        self._space = text[len(told) :]
        if told:
            self._behind_call = False
        return self._told(told)

    def _told(self, text: str) -> list[News]:
        if not text:
            return []
        self.answer.content = (self.answer.content or "") + text
        return [Content(text)]
