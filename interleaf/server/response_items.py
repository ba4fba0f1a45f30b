"""The output items of a response while it is written, and the events that tell of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from interleaf.outputs import CompletionOutput
from interleaf.server.answer_reader import AnswerReader, CallBegun, CallDone, CallGrown, News
from interleaf.server.protocol.responses import (
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
)
from interleaf.server.text_reader import Content, Reasoning

Event = tuple[str, dict[str, Any]]
"""Type (behind "response.") and fields."""


class ResponseItems:
    """Items in the order in which they are written; the last one is open until the next one begins.

    Args:
        reader: None takes the text as it is.
        streamed: what was told cannot be taken back.

    Attributes:
        items: of the response.
    """

    def __init__(self, reader: AnswerReader | None, message_id: str, streamed: bool) -> None:
        self.reader = reader
        self.items: list[OutputItem] = []
        self._message_id = message_id
        self._streamed = streamed
        self._open: OutputItem | None = None
        self._logprobs: list[Any] = []
        """Of tokens whose text is still held back."""

    def begin(self) -> Iterator[Event]:
        """Where no parser can find anything else, the answer is a message from the start."""
        if self.reader is None:
            yield from self._message()

    def follow(self, one: CompletionOutput, logprobs: list[Any]) -> Iterator[Event]:
        """What the sequence has brought; where it ends, its last item is left open for `end`."""
        if self.reader is None:
            if one.text or logprobs:
                yield from self._text(one.text, logprobs)
            return
        self._logprobs += logprobs
        for news in self.reader.follow(one):
            yield from self._news(news)
        if one.finished and not self.items:
            yield from self._message()

    def end(self, status: str) -> Iterator[Event]:
        """Close the last item.

        Args:
            status: "completed", or "incomplete" for an answer that was cut off.
        """
        item, self._open = self._open, None
        if item is None:
            return
        index = len(self.items) - 1
        place = {"item_id": item.id, "output_index": index}
        item.status = status
        if isinstance(item, OutputCall):
            yield "function_call_arguments.done", {**place, "name": item.name, "arguments": item.arguments}
        else:
            yield from self._end_of_part(item, {**place, "content_index": 0})
        yield "output_item.done", {"output_index": index, "item": item}

    def _end_of_part(self, item: OutputMessage | OutputReasoning, place: dict[str, Any]) -> Iterator[Event]:
        [part] = item.content
        if isinstance(part, OutputText):
            yield "output_text.done", {**place, "text": part.text, "logprobs": part.logprobs}
        else:
            yield "reasoning_text.done", {**place, "text": part.text}
        yield "content_part.done", {**place, "part": part}

    def _news(self, news: News) -> Iterator[Event]:
        if isinstance(news, Content):
            logprobs, self._logprobs = self._logprobs, []
            yield from self._text(news.text, logprobs)
            return
        # The logprobs of a message are those of its own tokens.
        self._logprobs = []
        if isinstance(news, Reasoning):
            yield from self._thought(news.text)
        elif isinstance(news, CallBegun):
            call = OutputCall(f"fc_{uuid.uuid4().hex}", "in_progress", news.call.id, news.call.name)
            yield from self._add(call)
        elif isinstance(news, CallGrown) and isinstance(self._open, OutputCall):
            self._open.arguments += news.arguments
            yield "function_call_arguments.delta", {**self._place(), "delta": news.arguments}
        elif isinstance(news, CallDone):
            yield from self.end("incomplete" if news.dropped else "completed")
            if news.dropped and not self._streamed:
                self.items.pop()

    def _message(self) -> Iterator[Event]:
        taken = sum(isinstance(item, OutputMessage) for item in self.items)
        name = f"{self._message_id}_{taken}" if taken else self._message_id
        yield from self._add(OutputMessage(name, "in_progress", []))
        yield from self._add_part(OutputText("", [], []))

    def _text(self, text: str, logprobs: list[Any]) -> Iterator[Event]:
        if not isinstance(self._open, OutputMessage):
            yield from self._message()
        assert isinstance(self._open, OutputMessage)
        part = self._open.content[0]
        part.text += text
        part.logprobs.extend(logprobs)
        yield "output_text.delta", {**self._place(), "content_index": 0, "delta": text, "logprobs": logprobs}

    def _thought(self, text: str) -> Iterator[Event]:
        if not isinstance(self._open, OutputReasoning):
            yield from self._add(OutputReasoning(f"rs_{uuid.uuid4().hex}", "in_progress", []))
            yield from self._add_part(ReasoningText(""))
        assert isinstance(self._open, OutputReasoning)
        self._open.content[0].text += text
        yield "reasoning_text.delta", {**self._place(), "content_index": 0, "delta": text}

    def _add(self, item: OutputItem) -> Iterator[Event]:
        yield from self.end("completed")
        self.items.append(item)
        self._open = item
        yield "output_item.added", {"output_index": len(self.items) - 1, "item": item}

    def _add_part(self, part: OutputText | ReasoningText) -> Iterator[Event]:
        item: Any = self._open
        yield "content_part.added", {**self._place(), "content_index": 0, "part": part}
        item.content.append(part)

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open.id, "output_index": len(self.items) - 1}


def assistant_message(items: list[OutputItem]) -> dict[str, Any]:
    """The message, in the form of chats, that the items of a response are."""
    texts = [item.content[0].text for item in items if isinstance(item, OutputMessage)]
    thoughts = [item.content[0].text for item in items if isinstance(item, OutputReasoning)]
    calls = [
        {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
        for item in items
        if isinstance(item, OutputCall)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return message
