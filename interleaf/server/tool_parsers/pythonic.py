"""`[get_weather(city="Paris"), now()]`: calls as Python writes them (Llama 3.2 and 4, ToolACE).

They are taken apart as syntax and never run: arguments must be literals.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any, ClassVar

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser

MAX_CALL_CHARS = 200_000
MAX_NESTING = 50
STOP = re.compile(r"""["'()\[\]{}\\]""")
WORDS = {"true": True, "false": False, "null": None}
"""JSON's names, which models confuse with Python's."""


class PythonicParser(ToolParser):
    markers = ("<|python_start|>", "<|python_tag|>")
    at_start: ClassVar[tuple[str, ...]] = ("[",)

    def read_call(self) -> Steps[None]:
        yield from self.expect(*self.markers)
        yield from self.space()
        yield from self.read_bare()
        yield from self.space()
        yield from self.literal("<|python_end|>")

    def read_bare(self) -> Steps[None]:
        yield from self.expect("[")
        while True:
            yield from self.space()
            yield from self._read_one()
            yield from self.space()
            if (yield from self.expect(",", "]")) == "]":
                return

    def _read_one(self) -> Steps[None]:
        source: list[str] = []
        if (yield from self.until("(", "\n", "[", "]", '"', emit=source.append)) != "(":
            self.malformed()
        name = "".join(source)
        if self._known_only and name.strip() not in self.tools:
            self.malformed()
        yield from self._read_brackets(source)
        name, arguments = _parse("".join(source)) or self.malformed()
        self.begin_call(name)
        self.add_arguments(arguments)
        self.end_call()

    def _read_brackets(self, source: list[str]) -> Steps[None]:
        """From an opening bracket to the one that closes it; brackets in strings do not count."""
        depth, size, quote = 0, 0, ""
        while True:
            match = STOP.search(self._text)
            taken = self.take(len(self._text) if match is None else match.start())
            source.append(taken)
            size += len(taken) + 1
            if size > MAX_CALL_CHARS:
                self.malformed()
            if match is None:
                if self._ended:
                    self.malformed()
                yield
                continue
            if match[0] == "\\":
                yield from self.peek(2)
                source.append(self.take(2))
                continue
            source.append(self.take(1))
            if quote:
                quote = "" if match[0] == quote else quote
            elif match[0] in "\"'":
                quote = match[0]
            else:
                depth += 1 if match[0] in "([{" else -1
                if depth > MAX_NESTING:
                    self.malformed()
            if not depth:
                return


def _parse(source: str) -> tuple[str, str] | None:
    """Name and arguments (as JSON) of a call; None if it is anything but a call with literal keyword arguments."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call = ast.parse(source.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        arguments = {one.arg: _literal(one.value) for one in call.keywords if one.arg is not None}
        if len(arguments) != len(call.keywords):
            return None
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
        return ast.unparse(_dotted(call.func)), text
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _dotted(name: ast.expr) -> ast.expr:
    """
    Raises:
        ValueError: it is no name, and no names with dots between them.
    """
    inner = name
    while isinstance(inner, ast.Attribute):
        inner = inner.value
    if not isinstance(inner, ast.Name):
        raise ValueError
    return name


def _literal(node: ast.expr) -> Any:
    """The value of a literal that JSON has as well.

    Raises:
        ValueError: it is none.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, type(None))):
        return node.value
    if isinstance(node, ast.Name) and node.id in WORDS:
        return WORDS[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(element) for element in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_literal(key) if key is not None else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError
        return dict(zip(keys, map(_literal, node.values), strict=True))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return -value
    raise ValueError
