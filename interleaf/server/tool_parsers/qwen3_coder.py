"""`<function=name><parameter=key>value</parameter></function>`, perhaps within `<tool_call>`: Qwen3-Coder.

Values are bare text. What they are in JSON depends on the parameter's type in the tool's schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from interleaf.server.text_reader import Steps
from interleaf.server.tool_parsers.parser import ToolParser
from interleaf.server.tool_parsers.strict import (
    SPACE,
    Format,
    StrictCalls,
    arguments_schema,
    const,
    either,
    pattern,
    sequence,
)

PARAMETER = "<parameter="
VALUE_END = "</parameter>"
LINE_END = pattern(r"\n?")
NAME_FORMAT = pattern(r"[^<>\s]{1,200}>")
TEXT_VALUE: Format = {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": VALUE_END + "\n"}
NAME = re.compile(r"[^<>\s]{1,200}")


class Qwen3CoderParser(ToolParser):
    markers = ("<tool_call>", "<function=")

    @classmethod
    def answer_format(cls, calls: StrictCalls) -> Format:
        function = calls.each(lambda name: [const(f"{name}>"), *_parameters(calls, name), const("</function>")])
        return calls.in_text(
            {
                "<tool_call>": sequence(SPACE, const("<function="), function, SPACE, const("</tool_call>")),
                "<function=": function,
            }
        )

    def read_call(self) -> Steps[None]:
        yield from self.literal("<tool_call>")
        yield from self.space()
        if (yield from self.peek(1)) == "{":
            yield from self.read_calls()
        else:
            yield from self.expect("<function=")
            yield from self._read_function()
        yield from self.space()
        yield from self.literal("</tool_call>")

    def _read_function(self) -> Steps[None]:
        name = yield from self._read_name()
        self.begin_call(name)
        types = _types(self.tools.get(name, {}))
        opening = "{"
        while True:
            yield from self.space()
            if (yield from self.expect(PARAMETER, "</function>")) != PARAMETER:
                break
            key = yield from self._read_name()
            self.add_arguments(f"{opening}{_json(key)}: ")
            opening = ", "
            yield from self._read_value(types.get(key, frozenset()))
        self.add_arguments("{}" if opening == "{" else "}")
        self.end_call()

    def _read_name(self) -> Steps[str]:
        """A name and the bracket behind it."""
        parts: list[str] = []
        yield from self.until(">", "<", "\n", emit=parts.append)
        name = "".join(parts)
        if NAME.fullmatch(name) is None:
            self.malformed()
        yield from self.expect(">")
        return name

    def _read_value(self, types: frozenset[str]) -> Steps[None]:
        """Text up to the closing tag, without the line ends around it; a string is told as it comes."""
        yield from self.literal("\n")
        if types == {"string"}:
            self.add_arguments('"')
            yield from self.until("\n" + VALUE_END, VALUE_END, emit=lambda text: self.add_arguments(_json(text)[1:-1]))
            self.add_arguments('"')
        else:
            parts: list[str] = []
            yield from self.until("\n" + VALUE_END, VALUE_END, emit=parts.append)
            self.add_arguments(_value("".join(parts), types))
        yield from self.literal("\n")
        yield from self.expect(VALUE_END)


def _parameters(calls: StrictCalls, name: str) -> list[Format]:
    """The parameters of a strict tool in the order of its schema; of any other whatever the model writes."""
    if name not in calls.strict:
        return [LINE_END, {"type": "star", "content": sequence(const(PARAMETER), NAME_FORMAT, TEXT_VALUE)}]
    schema = arguments_schema(calls.tools[name])
    properties, required = schema.get("properties"), schema.get("required")
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions", "x-guidance") if key in schema}
    written = [LINE_END]
    for key, given in properties.items() if isinstance(properties, Mapping) else ():
        value = _value_format(given if isinstance(given, Mapping) else {}, shared)
        one = sequence(const(f"{PARAMETER}{key}>"), *value)
        written.append(one if isinstance(required, list) and key in required else {"type": "optional", "content": one})
    return written


def _value_format(schema: Mapping[str, Any], shared: Mapping[str, Any]) -> list[Format]:
    """A value and its closing tag: strings are bare text, everything else is JSON."""
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
        return [LINE_END, either(*map(const, choices)), LINE_END, const(VALUE_END), LINE_END]
    resolved = _resolved(schema, shared)
    types = _schema_types(resolved)
    if types == {"string"} and (held := _held_text(resolved)):
        return [pattern(rf"\n(?:{held})\n{VALUE_END}\n?")]
    if not types or "string" in types:
        return [TEXT_VALUE]
    return [
        LINE_END,
        {"type": "json_schema", "json_schema": {**shared, **schema}},
        LINE_END,
        const(VALUE_END),
        LINE_END,
    ]


def _held_text(schema: Mapping[str, Any]) -> str:
    """A regex of what a string's schema allows, as far as it can be told without losing the closing tag."""
    given = str(schema.get("pattern", ""))
    if given.startswith("^") and given.endswith("$"):
        return given[1:-1]
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    return f"[^<]{{{least},{most}}}" if least or most != "" else ""


def _resolved(schema: Mapping[str, Any], shared: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference to the shared definitions refers to."""
    _, _, path = str(schema.get("$ref", "")).partition("#/")
    place, _, key = path.partition("/")
    definitions = shared.get(place)
    found = definitions.get(key) if isinstance(definitions, Mapping) else None
    return found if isinstance(found, Mapping) else schema


def _types(parameters: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Parameter -> the types that its schema allows; nothing for one whose schema does not name types."""
    properties = parameters.get("properties")
    if not isinstance(properties, Mapping):
        return {}
    return {name: _schema_types(schema) for name, schema in properties.items() if isinstance(schema, Mapping)}


def _schema_types(schema: Mapping[str, Any]) -> frozenset[str]:
    given = schema.get("type")
    if isinstance(given, str):
        return frozenset([given])
    if isinstance(given, list):
        return frozenset(one for one in given if isinstance(one, str))
    choices = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(choices, list):
        return frozenset().union(*(_schema_types(one) for one in choices if isinstance(one, Mapping)))
    values = schema.get("enum")
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return frozenset(["string"])
    return frozenset()


def _value(text: str, types: frozenset[str]) -> str:
    """The JSON of a value: what the text says, if it is JSON of an allowed type; else a string."""
    word = text.strip()
    # Models write these as Python has them, too.
    word = {"True": "true", "False": "false", "None": "null"}.get(word, word)
    try:
        value = msgspec.json.decode(word)
    except (msgspec.DecodeError, RecursionError):
        return _json(text)
    if types and not types & _types_of(value):
        return _json(text)
    return word


def _types_of(value: Any) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset(["boolean"])
    if isinstance(value, int):
        return frozenset(["integer", "number"])
    if isinstance(value, float):
        return frozenset(["number", "integer"]) if value.is_integer() else frozenset(["number"])
    names = {str: "string", list: "array", dict: "object", type(None): "null"}
    return frozenset([names[type(value)]])


def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()
