"""Pieces of grammars in Lark's notation, as the llguidance library reads it."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from interleaf.errors import GrammarError, ParameterError
from interleaf.structured_params import StructuredOutputsParams

MAX_GBNF_CHARACTERS = 1 << 15
"""GBNF is translated in Python, which takes about a second for this much."""
GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


def literal(text: str) -> str:
    """A text that stands for itself.

    Raises:
        GrammarError: it is no valid Unicode.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise GrammarError("A text that the output shall have is not valid Unicode.") from None
    return json.dumps(text, ensure_ascii=False)


def regex(pattern: str) -> str:
    """A terminal that matches a regex.

    Its `\\d` and `\\w` mean ASCII only: in Unicode no two libraries agree on them. A pattern with `\\D` or `\\W`
    keeps the Unicode meaning, which is the narrower one there.
    """
    from llguidance import regex_to_lark

    ascii_only = "".join(kind for kind in "dw" if f"\\{kind.upper()}" not in pattern)
    return f"/{regex_to_lark(pattern, ascii_only)}/"


def lark_of(grammar: str) -> str:
    """A grammar that may have been written in GBNF, llama.cpp's EBNF (`root ::= ...`), in Lark's notation.

    Raises:
        GrammarError: it is GBNF, and too long or wrong.
    """
    if not GBNF_RULE.search(grammar):
        return grammar
    if len(grammar) > MAX_GBNF_CHARACTERS:
        raise GrammarError(
            f"A grammar in GBNF may have at most {MAX_GBNF_CHARACTERS} characters: write it in Lark's notation.",
            "grammar",
        )
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(grammar)
    except Exception as error:
        # Its parser has errors of its own, and of Python's for what it does not expect.
        raise GrammarError(f"The grammar is not valid GBNF: {error or type(error).__name__}.", "grammar") from None


def parsed_json(name: str, document: Any) -> Any:
    """A JSON document that may have been given as text.

    Raises:
        ParameterError: the text is no JSON, or it is nested too deeply.
    """
    if not isinstance(document, str):
        return document
    try:
        found = msgspec.json.decode(document)
    except (msgspec.DecodeError, RecursionError) as error:
        raise GrammarError(f"{name} is not valid JSON: {error}.", name) from None
    if isinstance(found, dict):
        try:
            # Which checks its depth and size.
            StructuredOutputsParams(json=found)
        except ParameterError as error:
            raise GrammarError(str(error).replace("json", name, 1), name) from None
    return found
