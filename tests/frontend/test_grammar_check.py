"""Grammars that would take hours, all memory or the whole stack are refused, and good ones pass before and after."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from interleaf.errors import GrammarError
from interleaf.frontend.grammar import grammar_source
from interleaf.frontend.grammar_check import GrammarChecker
from interleaf.messages import Vocabulary
from interleaf.structured_params import StructuredOutputsParams
from tests.loader.tiny import byte_level_bpe

GOOD = grammar_source(StructuredOutputsParams(json={"type": "object", "properties": {"a": {"type": "integer"}}}), {})
SLOW = grammar_source(
    StructuredOutputsParams(
        json={"allOf": [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{i}}}$"} for i in range(1, 30)]}
    ),
    [],
)
RULES = "\n".join(f'r{i}: "a{i}" r{i + 1}' for i in range(9000))
DEEP = grammar_source(StructuredOutputsParams(grammar=f'start: r0\n{RULES}\nr9000: "a"'), {})


@pytest.fixture(scope="module")
def checker() -> Iterator[GrammarChecker]:
    checker = GrammarChecker(lambda: Vocabulary(byte_level_bpe().to_str(), 384, [2]), seconds=0.3)
    yield checker
    checker.close()


def other(number: int) -> str:
    """A good grammar that was not checked before."""
    return grammar_source(StructuredOutputsParams(regex=f"a{{{number}}}"), {})


@pytest.mark.parametrize(
    ("source", "reason"), [(SLOW, "too long"), (DEEP, "too (deeply|long)"), ("{}", "cannot be used")]
)
def test_bad_ones_are_refused_and_good_ones_pass(checker: GrammarChecker, source: str, reason: str) -> None:
    checker.check(GOOD)
    begin = time.monotonic()
    for _ in range(2):
        with pytest.raises(GrammarError, match=reason):
            checker.check(source)
    assert time.monotonic() - begin < 10
    checker.check(GOOD)
    checker.check(other(len(source) % 97 + 3))


def test_what_is_known_is_not_checked_again(checker: GrammarChecker) -> None:
    checker.check(GOOD)
    begin = time.perf_counter()
    for _ in range(20):
        checker.check(GOOD)
    assert time.perf_counter() - begin < 0.05


def test_a_process_that_was_killed_is_replaced(checker: GrammarChecker) -> None:
    checker.check(other(1))
    assert checker._process is not None
    os.kill(checker._process.pid, signal.SIGKILL)
    checker.check(other(2))


def test_hostile_regexes_and_schemas_end(checker: GrammarChecker) -> None:
    for structure in (
        {"regex": "((a{1,1000}){1,1000}){1,1000}"},
        {"regex": "(a|b)*a(a|b){2000}"},
        {"regex": "(" * 5000 + "a" + ")" * 5000},
        {"regex": "a" * 200_000},
        {"json": {"type": "array", "minItems": 10**9, "items": {"type": "integer"}}},
        {"json": {"type": "string", "minLength": 10**9}},
        {"json": {"enum": [f"v{i}" for i in range(20_000)]}},
        {"json": {"type": "integer", "multipleOf": 1_000_003}},
        {"grammar": "start: " + "(" * 50_000 + '"a"' + ")" * 50_000},
        {"grammar": "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(60)) + '\nr60: "a"'},
        {"grammar": 'root ::= "' + "(" * 20_000},
    ):
        try:
            checker.check(grammar_source(StructuredOutputsParams(**structure), {}))
        except GrammarError as error:
            assert str(error).endswith(".") and len(str(error)) < 500
    checker.check(GOOD)


def test_a_vocabulary_that_cannot_be_used() -> None:
    checker = GrammarChecker(lambda: Vocabulary("{}", 10, [1]))
    with pytest.raises(GrammarError, match="tokenizer"):
        checker.check(GOOD)
    checker.close()
    checker.close()
