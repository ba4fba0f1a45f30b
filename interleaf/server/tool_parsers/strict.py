"""Calls of `strict` tools: formats of structural tags (`interleaf.frontend.structural_tag`) for whole answers.

The text is free up to what begins a call; from there on it is the call of a tool that there is, with arguments that
fit the tool's schema. Each parser's `answer_format` says what that looks like for its models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

Format = dict[str, Any]
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StrictCalls:
    """The tools of a request, some of which are strict, and the pieces that formats are made of.

    Fields:
        tools: name -> JSON schema of the parameters, of all tools that may be called.
        strict: names of those whose arguments must fit their schema; those of others are any object.
        parallel: there may be more than one call.
    """

    tools: Mapping[str, Schema]
    strict: frozenset[str]
    parallel: bool

    def arguments(self, name: str) -> Format:
        """The arguments of a tool."""
        given = self.tools[name] if name in self.strict else {"type": "object"}
        return {"type": "json_schema", "json_schema": arguments_schema(given)}

    def call(self, key: str = "arguments") -> Format:
        """`{"name": ..., "arguments": {...}}`, of any of the tools."""
        return self.each(lambda name: [const(f'{{"name": {_json(name)}, "{key}": '), self.arguments(name), const("}")])

    def calls(self, key: str = "arguments") -> Format:
        """A JSON array of at least one call."""
        return sequence(const("["), self.several(self.call(key), ", "), const("]"))

    def several(self, call: Format, separator: str) -> Format:
        """A call, and where there may be several, any number of further ones."""
        return {
            "type": "tags_with_separator",
            "tags": [{"type": "tag", "begin": "", "content": call, "end": ""}],
            "separator": separator,
            "at_least_one": True,
            "stop_after_first": not self.parallel,
        }

    def each(self, elements: Any) -> Format:
        """One of the tools; `elements(name)` is what its call consists of."""
        return either(*(sequence(*elements(name)) for name in self.tools))

    def in_text(self, tags: Mapping[str, Format]) -> Format:
        """Free text in which some text begins a call, which goes on as the format says."""
        return {
            "type": "triggered_tags",
            "triggers": list(tags),
            "tags": [{"type": "tag", "begin": begin, "content": content, "end": ""} for begin, content in tags.items()],
            "stop_after_first": not self.parallel,
        }


def arguments_schema(parameters: Schema) -> dict[str, Any]:
    """The JSON schema of a tool's arguments, which are always an object and have no blanks but behind : and comma."""
    schema = {**parameters, "type": "object"} if parameters else {"type": "object", "additionalProperties": False}
    # Small models are prone to write blanks, where they may, until their tokens end.
    return {**schema, "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}


def const(text: str) -> Format:
    """This text."""
    return {"type": "const_string", "value": text}


def pattern(regex: str) -> Format:
    """A text that the regex matches."""
    return {"type": "regex", "pattern": regex}


def sequence(*elements: Format) -> Format:
    """One behind the other."""
    return {"type": "sequence", "elements": list(elements)}


def either(*elements: Format) -> Format:
    """One of these."""
    return {"type": "or", "elements": list(elements)}


def maybe(*elements: Format) -> Format:
    """These, or nothing."""
    return {"type": "optional", "content": sequence(*elements)}


SPACE = pattern(r"[ \n]{0,2}")
"""What models have learned to write between marks and calls."""


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
