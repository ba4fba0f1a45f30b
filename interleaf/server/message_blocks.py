"""The content blocks of an Anthropic message while it is written, and the events that tell of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from interleaf.outputs import CompletionOutput
from interleaf.server.answer_reader import AnswerReader, CallBegun, CallDone, CallGrown, News
from interleaf.server.protocol.anthropic import ContentBlock, TextBlock, ThinkingBlock, ToolUseBlock
from interleaf.server.text_reader import Content, Reasoning

Event = tuple[str, dict[str, Any]]
"""Type and fields."""


class MessageBlocks:
    """Blocks in the order in which they are written; the last one is open until the next one begins.

    Args:
        reader: None takes the text as it is.
        streamed: what was told cannot be taken back.

    Attributes:
        blocks: of the message.
    """

    def __init__(self, reader: AnswerReader | None, streamed: bool) -> None:
        self.blocks: list[ContentBlock] = []
        self._reader = reader
        self._streamed = streamed
        self._open: ContentBlock | None = None
        self._arguments = ""
        """Of the call that is open."""

    def begin(self) -> Iterator[Event]:
        """Where no parser can find anything else, the message is a text from the start."""
        if self._reader is None:
            yield from self._add(TextBlock(""))

    def follow(self, one: CompletionOutput) -> Iterator[Event]:
        """What the sequence has brought."""
        if self._reader is None:
            if one.text:
                yield from self._text(one.text)
        else:
            for news in self._reader.follow(one):
                yield from self._news(news)
        if one.finished:
            yield from self._close()

    @property
    def has_calls(self) -> bool:
        return any(isinstance(block, ToolUseBlock) for block in self.blocks)

    def _news(self, news: News) -> Iterator[Event]:
        if isinstance(news, Content):
            yield from self._text(news.text)
        elif isinstance(news, Reasoning):
            yield from self._thought(news.text)
        elif isinstance(news, CallBegun):
            self._arguments = ""
            yield from self._add(ToolUseBlock(news.call.id, news.call.name))
        elif isinstance(news, CallGrown):
            self._arguments += news.arguments
            yield self._delta({"type": "input_json_delta", "partial_json": news.arguments})
        elif isinstance(news, CallDone):
            yield from self._close()
            if news.dropped and not self._streamed:
                self.blocks.pop()

    def _text(self, text: str) -> Iterator[Event]:
        if not isinstance(self._open, TextBlock):
            yield from self._add(TextBlock(""))
        assert isinstance(self._open, TextBlock)
        self._open.text += text
        yield self._delta({"type": "text_delta", "text": text})

    def _thought(self, text: str) -> Iterator[Event]:
        if not isinstance(self._open, ThinkingBlock):
            yield from self._add(ThinkingBlock(""))
        assert isinstance(self._open, ThinkingBlock)
        self._open.thinking += text
        yield self._delta({"type": "thinking_delta", "thinking": text})

    def _delta(self, delta: dict[str, str]) -> Event:
        return "content_block_delta", {"index": len(self.blocks) - 1, "delta": delta}

    def _add(self, block: ContentBlock) -> Iterator[Event]:
        yield from self._close()
        self.blocks.append(block)
        self._open = block
        yield "content_block_start", {"index": len(self.blocks) - 1, "content_block": block}

    def _close(self) -> Iterator[Event]:
        block, self._open = self._open, None
        if block is None:
            return
        if isinstance(block, ToolUseBlock):
            block.input = _object(self._arguments)
        yield "content_block_stop", {"index": len(self.blocks) - 1}


def _object(arguments: str) -> dict[str, Any]:
    """The arguments of a call; those that were cut off are none."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {}
