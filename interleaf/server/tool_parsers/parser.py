"""What tool parsers have in common: from the text of an answer to content and calls."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from interleaf.server.text_reader import (
    CallArguments,
    CallBegin,
    CallDropped,
    CallEnd,
    Content,
    MalformedError,
    Steps,
    TextReader,
)
from interleaf.server.tool_parsers.strict import Format, StrictCalls

Tools = Mapping[str, Mapping[str, Any]]
"""Name -> JSON schema of the parameters, of the tools that a request has."""

NAMES = ("name", "function", "tool_name")
ARGUMENTS = ("arguments", "parameters")


class ToolParser(TextReader):
    """Finds calls in an answer; what is no call is content.

    A subclass says in `read_call` what a call looks like behind one of its `markers`. What turns out to be none becomes
    content again, the marker included. A parser never evaluates what a model wrote.

    Args:
        tools: of the request.

    Attributes:
        markers: texts that a call begins with.
        at_start: characters with which a call may also begin the answer, without a marker; then it must name a tool of
            the request.
        keeps_unfinished: a call that the end of the answer cuts off stays a call.
    """

    markers: ClassVar[tuple[str, ...]] = ()
    at_start: ClassVar[tuple[str, ...]] = ()
    keeps_unfinished: ClassVar[bool] = False

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        self._known_only = False
        self._began = False
        super().__init__()

    @staticmethod
    def call_id() -> str:
        """An id for a call."""
        return f"call_{uuid.uuid4().hex[:24]}"

    @classmethod
    def answer_format(cls, calls: StrictCalls) -> Format | None:
        """What a whole answer looks like, calls within free text, as a format of a structural tag.

        None says that this parser's calls cannot be held to schemas.
        """
        return None

    def read(self) -> Steps[None]:
        if self.at_start:
            yield from self._guarded(self._read_start(), known_only=True)
        while (yield from self.until(*self.markers, emit=self.emit_content)):
            yield from self._guarded(self.read_call())

    def _read_start(self) -> Steps[None]:
        yield from self.space()
        if (yield from self.peek(1)) not in self.at_start:
            self.malformed()
        yield from self.read_bare()

    def read_call(self) -> Steps[None]:
        """What follows: a marker, and the call or calls behind it; in JSON unless a subclass says otherwise.

        Raises:
            MalformedError: it is none.
        """
        yield from self.expect(*self.markers)
        yield from self.read_calls()

    def read_bare(self) -> Steps[None]:
        """What follows: calls without a marker, at the start of the answer.

        Raises:
            MalformedError: it is none.
        """
        yield from self.read_calls()

    def _guarded(self, steps: Steps[None], known_only: bool = False) -> Steps[None]:
        """Read calls; what is malformed becomes content."""
        self.record()
        self._known_only = known_only
        try:
            yield from steps
            self.recorded()
        except MalformedError:
            self._give_up()

    def _give_up(self) -> None:
        raw = self.recorded()
        began, self._began = self._began, False
        if began and self.keeps_unfinished:
            self.emit(CallEnd())
        elif began:
            self.emit(CallDropped(raw))
        elif raw:
            self.emit_content(raw)

    def emit_content(self, text: str) -> None:
        self.emit(Content(text))

    # ---- what parsers are written with ----

    def begin_call(self, name: str) -> None:
        """A call begins; without a marker it must name a tool that there is."""
        if not name or (self._known_only and name not in self.tools):
            self.malformed()
        self._began = True
        self.emit(CallBegin(name))

    def add_arguments(self, text: str) -> None:
        if text:
            self.emit(CallArguments(text))

    def end_call(self) -> None:
        """The call is complete: nothing behind it can undo it."""
        self._began = False
        self.emit(CallEnd())
        self.record()

    def read_arguments(self) -> Steps[None]:
        """A JSON object, or one in a JSON string, as the arguments of the call that has begun."""
        if (yield from self.peek(1)) == '"':
            self.add_arguments(self._object_in((yield from self.json_string())))
        else:
            yield from self.json_value(self.add_arguments, only="{")

    def read_calls(self) -> Steps[None]:
        """`{"name": ..., "arguments": {...}}`, or a JSON array of such."""
        yield from self.space()
        if not (yield from self.literal("[")):
            yield from self.read_object()
            return
        while True:
            yield from self.space()
            yield from self.read_object()
            yield from self.space()
            if (yield from self.expect(",", "]")) == "]":
                return

    def read_object(self) -> Steps[None]:
        """One call as a JSON object, whichever of name and arguments comes first."""
        yield from self._members(_Call())
        self.end_call()

    def _members(self, call: _Call, nested: bool = False) -> Steps[None]:
        yield from self.expect("{")
        yield from self.space()
        closed = (yield from self.literal("}")) != ""
        while not closed:
            yield from self.space()
            key = yield from self.json_string()
            yield from self.space()
            yield from self.expect(":")
            yield from self.space()
            yield from self._member(call, key)
            yield from self.space()
            closed = (yield from self.expect(",", "}")) == "}"
        if not nested:
            self._begin_with(call)
            if not call.has_arguments:
                self.add_arguments("{}")

    def _member(self, call: _Call, key: str) -> Steps[None]:
        first = yield from self.peek(1)
        if key in NAMES and first == '"' and not call.name:
            call.name = yield from self.json_string()
        elif key == "function" and first == "{" and not call.name:
            yield from self._members(call, nested=True)
        elif key in ARGUMENTS and not call.has_arguments:
            yield from self._argument_member(call, first)
        else:
            yield from self.json_value(_ignore)

    def _argument_member(self, call: _Call, first: str) -> Steps[None]:
        call.has_arguments = True
        if first == "n":
            yield from self.expect("null")
            call.waiting.append("{}")
        elif first == '"':
            call.waiting.append(self._object_in((yield from self.json_string())))
        elif call.name and first == "{":
            self._begin_with(call)
            yield from self.json_value(self.add_arguments, only="{")
        else:
            yield from self.json_value(call.waiting.append, only="{")

    def _begin_with(self, call: _Call) -> None:
        if not self._began:
            self.begin_call(call.name)
        self.add_arguments("".join(call.waiting))
        call.waiting.clear()

    def _object_in(self, text: str) -> str:
        """The text of a JSON object; empty text stands for one without members."""
        try:
            msgspec.json.decode(text or "{}", type=dict)
        except (msgspec.DecodeError, RecursionError):
            self.malformed()
        return text.strip() or "{}"


class _Call:
    """A call as far as it is known: arguments wait while the name is not."""

    def __init__(self) -> None:
        self.name = ""
        self.has_arguments = False
        self.waiting: list[str] = []


def _ignore(text: str) -> None:
    """For values that are of no use."""


ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def short_id() -> str:
    """Nine letters and digits, which the templates of Mistral demand of an id."""
    return "".join(secrets.choice(ALPHABET) for _ in range(9))
