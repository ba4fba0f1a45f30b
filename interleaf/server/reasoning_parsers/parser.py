"""What reasoning parsers have in common: from the text of an answer to reasoning and content."""

from __future__ import annotations

from typing import ClassVar

from interleaf.server.text_reader import Content, Reasoning, Steps, TextReader


class ReasoningParser(TextReader):
    """Parts an answer into what the model thought, which comes first, and the rest.

    A subclass has `starts` and `ends`, or a `read` of its own.

    Args:
        is_open: the prompt has begun the reasoning already.

    Attributes:
        starts, ends: markers around reasoning.
        always: the reasoning is there even if no marker begins it.
    """

    starts: ClassVar[tuple[str, ...]] = ()
    ends: ClassVar[tuple[str, ...]] = ()
    always: ClassVar[bool] = False

    def __init__(self, is_open: bool = False) -> None:
        self._is_open = is_open
        self._held_space = ""
        super().__init__()

    @classmethod
    def state_behind(cls, prompt: str) -> bool | None:
        """Whether reasoning is going on at the end of a prompt; None if the prompt does not tell."""
        end = prompt.rstrip()
        if end.endswith(cls.starts):
            return True
        return False if end.endswith(cls.ends) else None

    def read(self) -> Steps[None]:
        space = yield from self.space()
        began = yield from self.literal(*self.starts)
        if began or self._is_open or self.always:
            yield from self.space()
            if (yield from self.until(*self.ends, emit=self._emit_reasoning)):
                yield from self.literal(*self.ends)
            yield from self.space()
        elif space:
            self.emit(Content(space))
        yield from self.rest(lambda text: self.emit(Content(text)))

    def _emit_reasoning(self, text: str) -> None:
        """Without the whitespace at its end."""
        told = (self._held_space + text).rstrip()
        self._held_space = (self._held_space + text)[len(told) :]
        if told:
            self.emit(Reasoning(told))
