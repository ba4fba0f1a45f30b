"""Structural tags: which texts fit each format, asked of the compiled grammar."""

from __future__ import annotations

import json
from typing import Any

import pytest

from interleaf.core.structured import GrammarCompiler
from interleaf.errors import GrammarError
from interleaf.frontend.grammar import grammar_source
from interleaf.messages import Vocabulary
from interleaf.structured_params import StructuredOutputsParams
from tests.loader.tiny import SPECIAL_TOKENS, byte_level_bpe

EOS = 2
TOKEN_IDS = {token: i for i, token in enumerate(SPECIAL_TOKENS)}
COMPILER = GrammarCompiler(Vocabulary(byte_level_bpe().to_str(), 384, [EOS]))
INTEGER = {"type": "json_schema", "json_schema": {"type": "integer", "minimum": 0, "maximum": 99}}
TEXT = {"type": "any_text"}


def const(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def tag(begin: str, end: Any = "</f>", content: dict[str, Any] = INTEGER) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def fits(structure: dict[str, Any], text: str) -> bool:
    source = grammar_source(StructuredOutputsParams(structural_tag=structure), TOKEN_IDS)
    state = COMPILER.submit(source).result().start([], byte_level_bpe().encode(text).ids)
    return state.error is None and state.matcher.is_accepting()


TAGS = [tag("<f=a>"), tag("<f=b>", content=const("x"))]
CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (const("ab"), ["ab"], ["", "a", "abc"]),
    (TEXT, ["", "any\nthing"], []),
    (INTEGER, ["7", "99"], ["x", "100"]),
    ({"type": "regex", "pattern": "a+/b"}, ["aa/b"], ["b"]),
    ({"type": "grammar", "grammar": 'root ::= "x" "y"*'}, ["x", "xyy"], ["y"]),
    ({"type": "or", "elements": [const("a"), INTEGER]}, ["a", "5"], ["a5"]),
    ({"type": "sequence", "elements": [const("a"), INTEGER, const("b")]}, ["a5b"], ["a5", "5b"]),
    ({"type": "sequence", "elements": [TEXT, const("END"), INTEGER]}, ["xx END5", "END5"], ["xx 5", "END x END5"]),
    ({"type": "optional", "content": const("a")}, ["", "a"], ["aa"]),
    ({"type": "star", "content": const("a")}, ["", "aaa"], ["b"]),
    ({"type": "plus", "content": const("a")}, ["a", "aa"], [""]),
    ({"type": "repeat", "min": 2, "max": 3, "content": const("a")}, ["aa", "aaa"], ["a", "aaaa"]),
    (tag("<", end=[">", "|"], content=TEXT), ["<x>", "<x|", "<>"], ["<x", "<x>y"]),
    (
        {"type": "triggered_tags", "triggers": ["<f="], "tags": TAGS},
        ["", "no tag", "<f", "one <f=a>5</f> and <f=b>x</f>.", "<f=a>5</f><f=a>6</f>"],
        ["<f=", "<f=c>5</f>", "<f=a>x</f>", "text <f=a>5"],
    ),
    (
        {"type": "triggered_tags", "triggers": ["<f="], "tags": TAGS, "at_least_one": True, "stop_after_first": True},
        ["one <f=a>5</f>"],
        ["", "no tag", "<f=a>5</f> more"],
    ),
    (
        {"type": "tags_with_separator", "tags": TAGS, "separator": ", ", "at_least_one": True},
        ["<f=a>5</f>", "<f=a>5</f>, <f=b>x</f>"],
        ["", "<f=a>5</f><f=b>x</f>"],
    ),
    (
        {"type": "sequence", "elements": [TEXT, const("<|im_start|>"), INTEGER]},
        ["x<|im_start|>5"],
        ["x5", "x<|im_start|>y"],
    ),
]


@pytest.mark.parametrize(("structure", "good", "bad"), CASES, ids=lambda value: str(value)[:40])
def test_formats(structure: dict[str, Any], good: list[str], bad: list[str]) -> None:
    whole = {"type": "structural_tag", "format": structure}
    assert [text for text in good if not fits(whole, text)] == []
    assert [text for text in bad if fits(whole, text)] == []


def test_the_older_form() -> None:
    structures = [{"begin": "<f=a>", "schema": {"type": "boolean"}, "end": "</f>"}]
    older = {"structures": structures, "triggers": ["<f="]}
    for text, good in (("just text", True), ("now <f=a>true</f>!", True), ("now <f=a>1</f>!", False)):
        assert fits(older, text) is good
    assert grammar_source(StructuredOutputsParams(structural_tag=json.dumps(older)), {}) == grammar_source(
        StructuredOutputsParams(structural_tag=older), []
    )


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        ({}, "format"),
        ({"format": {"type": "poem"}}, "'poem'"),
        ({"format": {"type": "const_string"}}, "value"),
        ({"format": {"type": "tag", "begin": "a", "content": TEXT}}, "end"),
        ({"format": {"type": "triggered_tags", "triggers": ["x"], "tags": TAGS}}, "none of the triggers"),
        ({"format": {"type": "triggered_tags", "triggers": [], "tags": TAGS}}, "at least one"),
        ({"format": {"type": "sequence", "elements": [TEXT, INTEGER]}}, "behind any_text"),
        ({"format": {"type": "repeat", "min": 3, "max": 2, "content": TEXT}}, "min and max"),
        ({"structures": [{"begin": "a"}], "triggers": ["a"]}, "end"),
        ({"structures": "x", "triggers": ["a"]}, "structures"),
    ],
)
def test_what_is_malformed(structure: dict[str, Any], reason: str) -> None:
    with pytest.raises(GrammarError, match=reason) as caught:
        grammar_source(StructuredOutputsParams(structural_tag=structure), {})
    assert caught.value.param == "structural_tag" and str(caught.value).endswith(".")
