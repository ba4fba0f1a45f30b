"""Reading an answer while it is written: parsers as coroutines over text that comes in pieces.

A parser is a generator that reads with the methods below (`yield from self.peek(1)`) and is suspended wherever it
needs text that has not come yet. Every decision waits for the characters that it depends on, so that the result does
not depend on where the text was cut.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import msgspec

T = TypeVar("T")

Steps = Generator[None, None, T]
"""A part of a parser: suspends itself for more text, returns T."""

MAX_DEPTH = 200
"""Of nested JSON; deeper arguments are malformed."""

FED_CHARACTERS = 4096

WHITESPACE = " \t\r\n"
STRING_STOP = re.compile(r'["\\\x00-\x1f]')
WORD = re.compile(r"[-+.0-9A-Za-z]*")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
ESCAPE = re.compile(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})')
CONTROL = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model thought."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of the tool `name` begins."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the JSON text of the call's arguments."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is complete."""


@dataclass(frozen=True, slots=True)
class CallDropped:
    """The call that had begun was none: `text` is what the model wrote in its place, from its beginning."""

    text: str


Piece = Reasoning | Content | CallBegin | CallArguments | CallEnd | CallDropped


class MalformedError(Exception):
    """The text is not what the parser reads here, or it ended. Never leaves a parser."""


class TextReader(ABC):
    """Base of all parsers of answers: `feed` text, then `finish`; both return what is known by then."""

    def __init__(self) -> None:
        self._text = ""
        self._ended = False
        self._recorded: list[str] | None = None
        self._pieces: list[Piece] = []
        self._steps: Steps[None] | None = self.read()
        self._resume()

    @abstractmethod
    def read(self) -> Steps[None]:
        """The parser: reads to the end of the text, and emits pieces."""

    def feed(self, text: str) -> list[Piece]:
        """Add text to what was fed before."""
        pieces: list[Piece] = []
        # What is unread is copied with each step: a long text at once must not make it long.
        for start in range(0, len(text), FED_CHARACTERS):
            self._text += text[start : start + FED_CHARACTERS]
            pieces += self._resume()
        return pieces

    def finish(self) -> list[Piece]:
        """There is no more text."""
        self._ended = True
        return self._resume()

    def _resume(self) -> list[Piece]:
        if self._steps is not None:
            try:
                next(self._steps)
            except StopIteration:
                self._steps = None
        pieces, self._pieces = self._pieces, []
        return pieces

    # ---- what parsers are written with ----

    def emit(self, piece: Piece) -> None:
        self._pieces.append(piece)

    def peek(self, count: int) -> Steps[str]:
        """The next characters, left where they are: `count`, or fewer at the end of the text."""
        while len(self._text) < count and not self._ended:
            yield
        return self._text[:count]

    def take(self, count: int) -> str:
        """Consume characters that are there."""
        taken, self._text = self._text[:count], self._text[count:]
        if self._recorded is not None:
            self._recorded.append(taken)
        return taken

    def record(self) -> None:
        """Remember what is consumed from here on, for `recorded`."""
        self._recorded = []

    def recorded(self) -> str:
        """What was consumed since `record`; remembers no longer."""
        text = "".join(self._recorded or ())
        self._recorded = None
        return text

    def literal(self, *choices: str) -> Steps[str]:
        """Consume the longest of `choices` that comes next, and return it; "" if none does."""
        while True:
            possible = [one for one in choices if one.startswith(self._text) and len(one) > len(self._text)]
            if not possible or self._ended:
                break
            yield
        found = max((one for one in choices if self._text.startswith(one)), key=len, default="")
        self.take(len(found))
        return found

    def expect(self, *choices: str) -> Steps[str]:
        """`literal`, or MalformedError."""
        found = yield from self.literal(*choices)
        return found or self.malformed()

    def space(self) -> Steps[str]:
        """Consume and return whitespace."""
        taken = []
        while True:
            count = len(self._text) - len(self._text.lstrip(WHITESPACE))
            taken.append(self.take(count))
            if self._text or self._ended:
                return "".join(taken)
            yield

    def until(self, *markers: str, emit: Callable[[str], None]) -> Steps[str]:
        """Emit text up to the first of `markers`, which is left where it is and returned; "" at the end of the text.

        Of two at one place, the longer one counts.
        """
        while True:
            place = min(_beginning(self._text, marker) for marker in markers)
            if place:
                emit(self.take(place))
            whole = [one for one in markers if self._text.startswith(one)]
            unfinished = any(len(one) > len(self._text) and one.startswith(self._text) for one in markers)
            if unfinished and not self._ended:
                yield
            elif whole:
                return max(whole, key=len)
            elif not self._text:
                return ""
            else:
                emit(self.take(1))

    def rest(self, emit: Callable[[str], None]) -> Steps[None]:
        """Emit all that comes."""
        while True:
            if self._text:
                emit(self.take(len(self._text)))
            if self._ended:
                return
            yield

    def malformed(self) -> NoReturn:
        raise MalformedError

    # ---- JSON ----

    def json_string(self) -> Steps[str]:
        """Consume a string; returns its value."""
        raw: list[str] = []
        yield from self.json_value(raw.append, only='"')
        try:
            value: str = msgspec.json.decode("".join(raw), type=str)
        except msgspec.DecodeError:
            self.malformed()
        return value

    def json_value(self, emit: Callable[[str], None], only: str = "") -> Steps[None]:
        """Emit a JSON value as it comes, and consume it; it is malformed at the first character that cannot be in one.

        Args:
            only: the first character that it must have.
        """
        if only and (yield from self.peek(1)) != only:
            self.malformed()
        closers: list[str] = []
        after_value = False
        while not after_value or closers:
            space = yield from self.space()
            emit(space)
            after_value = yield from self._json_token(emit, closers, after_value)

    def _json_token(self, emit: Callable[[str], None], closers: list[str], after_value: bool) -> Steps[bool]:
        """One value, key, bracket or comma of a JSON text; returns whether a value ends with it."""
        first = yield from self.peek(1)
        if after_value:
            if first == closers[-1]:
                closers.pop()
                emit(self.take(1))
                return True
            emit((yield from self.expect(",")))
            emit((yield from self.space()))
            if closers[-1] == "}":
                yield from self._json_key(emit)
            return False
        if first in ("{", "["):
            return (yield from self._json_open(emit, closers))
        if first == '"':
            yield from self._json_string(emit)
        else:
            yield from self._json_word(emit)
        return True

    def _json_open(self, emit: Callable[[str], None], closers: list[str]) -> Steps[bool]:
        opener = self.take(1)
        closer = "}" if opener == "{" else "]"
        emit(opener)
        emit((yield from self.space()))
        if (yield from self.literal(closer)):
            emit(closer)
            return True
        if len(closers) == MAX_DEPTH:
            self.malformed()
        closers.append(closer)
        if closer == "}":
            yield from self._json_key(emit)
        return False

    def _json_key(self, emit: Callable[[str], None]) -> Steps[None]:
        yield from self._json_string(emit)
        emit((yield from self.space()))
        emit((yield from self.expect(":")))

    def _json_string(self, emit: Callable[[str], None]) -> Steps[None]:
        """A string; control characters, which models leave bare and JSON forbids, are escaped."""
        emit((yield from self.expect('"')))
        while True:
            stop = STRING_STOP.search(self._text)
            plain = self.take(len(self._text) if stop is None else stop.start())
            if plain:
                emit(plain)
            if stop is None:
                if self._ended:
                    self.malformed()
                yield
                continue
            character = self._text[0]
            if character == "\\":
                yield from self._json_escape(emit)
                continue
            self.take(1)
            emit('"' if character == '"' else CONTROL.get(character) or f"\\u{ord(character):04x}")
            if character == '"':
                return

    def _json_escape(self, emit: Callable[[str], None]) -> Steps[None]:
        kind = yield from self.peek(2)
        escape = yield from self.peek(6 if kind == "\\u" else 2)
        if ESCAPE.fullmatch(escape) is None:
            self.malformed()
        emit(self.take(len(escape)))

    def _json_word(self, emit: Callable[[str], None]) -> Steps[None]:
        """A number, true, false or null."""
        length = 0
        while True:
            match = WORD.match(self._text, length)
            length = match.end() if match else length
            if length < len(self._text) or self._ended:
                break
            yield
        word = self._text[:length]
        if word not in ("true", "false", "null") and NUMBER.fullmatch(word) is None:
            self.malformed()
        emit(self.take(length))


def _beginning(text: str, marker: str) -> int:
    """Where the first marker begins in a text, be it whole or cut off by the text's end; else the text's length."""
    place = text.find(marker)
    whole = len(text) if place < 0 else place
    start = text.find(marker[0], max(0, len(text) - len(marker) + 1), whole)
    while start >= 0 and not marker.startswith(text[start:]):
        start = text.find(marker[0], start + 1, whole)
    return whole if start < 0 else start
