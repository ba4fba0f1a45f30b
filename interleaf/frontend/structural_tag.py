"""Structural tags: free text with structured parts, in vLLM's and xgrammar's JSON.

The older form is `{"structures": [{"begin", "schema", "end"}, ...], "triggers": [...]}`: a trigger starts one of the
structures. The newer one is `{"type": "structural_tag", "format": {...}}`, whose formats are the methods of `_Writer`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from interleaf.errors import GrammarError
from interleaf.frontend.lark import lark_of, literal, parsed_json, regex

Format = dict[str, Any]
MAX_REPEATS = 10_000


def structural_tag_grammar(
    tag: Any, special_tokens: Mapping[str, int], json_schema: Callable[[Any], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The grammars, of which the first is where the text starts.

    Args:
        special_tokens: spelling -> id; where one is written, the token is meant, not the letters of its name.
        json_schema: what a schema becomes for the library.

    Raises:
        GrammarError: the tag is malformed.
    """
    if not isinstance(tag, dict):
        raise _wrong("must be a JSON object")
    if "structures" in tag:
        tag = {"format": _of_structures(tag)}
    writer = _Writer(special_tokens, json_schema)
    start = writer.write(_field(tag, "format", dict, "structural_tag"), "")
    lark = "\n".join([f"start: {start}", *writer.rules])
    return [{"name": "start", "lark_grammar": lark}, *writer.grammars]


def _of_structures(tag: Format) -> Format:
    structures = _field(tag, "structures", list, "structural_tag")
    tags = [
        {
            "type": "tag",
            "begin": _field(structure, "begin", str, "structures"),
            "content": {"type": "json_schema", "json_schema": structure.get("schema", structure.get("json_schema"))},
            "end": _field(structure, "end", str, "structures"),
        }
        for structure in structures
    ]
    return {"type": "triggered_tags", "triggers": _field(tag, "triggers", list, "structural_tag"), "tags": tags}


class _Writer:
    """Writes each format as an expression of Lark's, and what that needs as rules and further grammars."""

    def __init__(self, special_tokens: Mapping[str, int], json_schema: Callable[[Any], dict[str, Any]]) -> None:
        self._special_tokens = special_tokens
        spellings = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, spellings)) or '(?!)'})")
        self._json_schema = json_schema
        self.rules: list[str] = []
        self.grammars: list[dict[str, Any]] = []

    def write(self, given: Any, end: str) -> str:
        """A format and the literal text behind it, which ends a free text where it first comes."""
        kind = _field(given, "type", str, "format")
        if kind == "any_text":
            return self._text_until(end)
        writers: dict[str, Callable[[Format, str], str]] = {
            "sequence": self._sequence,
            "or": self._or,
            "tag": self._tag,
            "triggered_tags": self._triggered_tags,
            "tags_with_separator": self._tags_with_separator,
        }
        if kind in writers:
            return writers[kind](given, end)
        return f"{self._plain(kind, given)} {self._literal(end)}"

    def _plain(self, kind: str, given: Format) -> str:
        """A format that knows its own end."""
        if kind == "const_string":
            return self._literal(_field(given, "value", str, kind))
        if kind == "json_schema":
            schema = parsed_json("structural_tag", given.get("json_schema"))
            return f"%json {json.dumps(self._json_schema(schema), ensure_ascii=False)}"
        if kind == "regex":
            return regex(_field(given, "pattern", str, kind))
        if kind == "grammar":
            name = f"grammar_{len(self.grammars)}"
            self.grammars.append({"name": name, "lark_grammar": lark_of(_field(given, "grammar", str, kind))})
            return f"@{name}"
        if kind in ("optional", "star", "plus", "repeat"):
            return f"({self.write(_field(given, 'content', dict, kind), '')}){_times(kind, given)}"
        raise _wrong(f"has a format of the type {kind!r:.60}, which is not known here")

    def _sequence(self, given: Format, end: str) -> str:
        elements = list(_field(given, "elements", list, "sequence"))
        parts: list[str] = []
        while len(elements) > 1:
            element = elements.pop(0)
            following = elements[0]
            begin = ""
            if _field(element, "type", str, "sequence") in ("any_text", "triggered_tags"):
                name = {"const_string": "value", "tag": "begin"}.get(_field(following, "type", str, "sequence"))
                if name is None:
                    raise _wrong(f"needs a const_string or a tag behind {element['type']}")
                begin = _field(following, name, str, following["type"])
                # It is written with the free text, which it ends.
                elements[0] = {**following, name: ""}
            parts.append(self.write(element, begin))
        return " ".join([*parts, *(self.write(element, end) for element in elements)])

    def _or(self, given: Format, end: str) -> str:
        elements = _field(given, "elements", list, "or")
        return f"({' | '.join(self.write(element, end) for element in elements)})"

    def _tag(self, given: Format, end: str, trigger: str = "") -> str:
        """
        Args:
            trigger: what of its beginning has been written.
        """
        begin = _field(given, "begin", str, "tag")[len(trigger) :]
        ends = given.get("end")
        ends = ends if isinstance(ends, list) else [ends]
        if not ends or not all(isinstance(one, str) for one in ends):
            raise _wrong("needs an end, a text or a list of texts, in each tag")
        content = _field(given, "content", dict, "tag")
        closed = [f"{self.write(content, one)} {self._literal(end)}" for one in ends]
        return f"{self._literal(begin)} ({' | '.join(closed)})"

    def _triggered_tags(self, given: Format, end: str) -> str:
        tags = _field(given, "tags", list, "triggered_tags")
        triggers = _field(given, "triggers", list, "triggered_tags")
        if not tags or not triggers or not all(isinstance(trigger, str) and trigger for trigger in triggers):
            raise _wrong("needs at least one tag, and triggers that are texts")
        alternatives = []
        for trigger in triggers:
            triggered = [tag for tag in tags if _field(tag, "begin", str, "tags").startswith(trigger)]
            if triggered:
                bodies = " | ".join(self._tag(tag, "", trigger) for tag in triggered)
                alternatives.append(f"{self._text_until(trigger)} ({bodies})")
        if any(not tag["begin"].startswith(tuple(triggers)) for tag in tags):
            raise _wrong("has a tag whose begin starts with none of the triggers")
        tagged = self._rule(" | ".join(alternatives))
        least_one, only_one = bool(given.get("at_least_one")), bool(given.get("stop_after_first"))
        if only_one:
            return (
                f"{tagged} {self._literal(end)}"
                if least_one
                else f"({tagged} {self._literal(end)} | {self._text_until(end)})"
            )
        return f"{tagged}{'+' if least_one else '*'} {self._text_until(end)}"

    def _tags_with_separator(self, given: Format, end: str) -> str:
        tags = " | ".join(self._tag(tag, "") for tag in _field(given, "tags", list, "tags_with_separator"))
        if not tags:
            raise _wrong("needs at least one tag")
        tag = self._rule(tags)
        separator = self._literal(_field(given, "separator", str, "tags_with_separator"))
        several = tag if given.get("stop_after_first") else f"{tag} ({separator} {tag})*"
        return f"({several}){'' if given.get('at_least_one') else '?'} {self._literal(end)}"

    def _text_until(self, end: str) -> str:
        """Free text, up to the first place where `end` stands, and `end`."""
        pieces = self._pieces(end)
        if not pieces:
            return r"/(?s:.*)/"
        first, *rest = pieces
        if self._special.fullmatch(first):
            return " ".join([r"/(?s:.*)/", *map(self._piece, pieces)])
        name = f"text_{len(self.rules)}"
        self.rules.append(f"{name}[lazy]: /(?s:.*)/ {literal(first)}")
        return " ".join([name, *map(self._piece, rest)])

    def _rule(self, body: str) -> str:
        name = f"rule_{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def _literal(self, text: str) -> str:
        return " ".join(map(self._piece, self._pieces(text))) or '""'

    def _pieces(self, text: str) -> list[str]:
        return [piece for piece in self._special.split(text) if piece]

    def _piece(self, piece: str) -> str:
        if self._special.fullmatch(piece) is None:
            return literal(piece)
        return piece if re.fullmatch(r"<[^<>\s]+>", piece) else f"<[{self._special_tokens[piece]}]>"


def _times(kind: str, given: Format) -> str:
    if kind != "repeat":
        return {"optional": "?", "star": "*", "plus": "+"}[kind]
    least, most = given.get("min", 0), given.get("max", MAX_REPEATS)
    if not (type(least) is int and type(most) is int and 0 <= least <= most <= MAX_REPEATS):
        raise _wrong(f"needs min and max from 0 to {MAX_REPEATS} in a repeat")
    return f"{{{least},{most}}}"


def _field(given: Any, name: str, kind: type, where: str) -> Any:
    """
    Raises:
        GrammarError: there is no such field, or it is of another type.
    """
    if not isinstance(given, dict) or not isinstance(given.get(name), kind):
        raise _wrong(f"needs the field {name} ({kind.__name__}) in {where}")
    return given[name]


def _wrong(what: str) -> GrammarError:
    return GrammarError(f"The structural tag {what}.", "structural_tag")
