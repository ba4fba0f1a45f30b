"""Calls that a grammar forces: `tool_choice` "required", or the name of a tool. The grammar is made here as well."""

from __future__ import annotations

from typing import Any

import msgspec

from interleaf.frontend.closed_schema import closed_schema
from interleaf.server.text_reader import MalformedError, Steps
from interleaf.server.tool_parsers.parser import ToolParser, Tools
from interleaf.server.tool_parsers.strict import arguments_schema


class RequiredCallsParser(ToolParser):
    """Reads what `required_grammar` allows: a JSON array of calls."""

    keeps_unfinished = True

    def read(self) -> Steps[None]:
        self.record()
        try:
            yield from self.read_calls()
        except MalformedError:
            self._give_up()
        yield from self.rest(_drop)


class NamedCallParser(ToolParser):
    """Reads the arguments of a call of the one tool in `tools`, and nothing else."""

    keeps_unfinished = True

    def read(self) -> Steps[None]:
        [name] = self.tools
        yield from self.space()
        if not (yield from self.peek(1)):
            return
        self.record()
        self.begin_call(name)
        try:
            yield from self.read_arguments()
            self.end_call()
        except MalformedError:
            self._give_up()
        yield from self.rest(_drop)


def required_grammar(tools: Tools, single: bool) -> str:
    """A Lark grammar (of llguidance) of an array with at least one call.

    Args:
        single: there is to be no second call.
    """
    calls = [f"call{number}" for number in range(len(tools))]
    more = "" if single else ' (", " call)*'
    rules = [f'start: "[" call{more} "]"', f"call: {' | '.join(calls)}"]
    for call, (name, parameters) in zip(calls, tools.items(), strict=True):
        head = f'{{"name": {_json(name)}, "parameters": '
        rules += [
            f'{call}: {_json(head)} {call}_arguments "}}"',
            f"{call}_arguments: %json {_json(closed_schema(arguments_schema(parameters)))}",
        ]
    return "\n".join(rules)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _drop(text: str) -> None:
    """Nothing may stand behind the calls."""
