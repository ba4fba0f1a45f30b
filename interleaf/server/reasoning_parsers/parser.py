"""From the text of an answer to reasoning and content."""

from __future__ import annotations

from interleaf.frontend.reasoning_families import ReasoningFamily
from interleaf.server.text_reader import Content, Reasoning, Steps, TextReader


class ReasoningParser(TextReader):
    """Parts an answer into what the model thought, which comes first, and the rest.

    A subclass may `read` in its own way.

    Args:
        family: whose marks they are.
        is_open: the prompt has begun the reasoning already.
    """

    def __init__(self, family: ReasoningFamily, is_open: bool = False) -> None:
        self.family = family
        self.is_open = is_open
        self._held_space = ""
        super().__init__()

    def read(self) -> Steps[None]:
        starts, ends = self.family.starts, self.family.ends
        space = yield from self.space()
        began = yield from self.literal(*starts)
        if began or self.is_open or self.family.always:
            yield from self.space()
            if (yield from self.until(*ends, emit=self._emit_reasoning)):
                yield from self.literal(*ends)
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
