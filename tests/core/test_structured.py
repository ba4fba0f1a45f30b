"""Masks and checks of tokens against brute force over the vocabulary: alone, forked, with drafts, with stop tokens."""

from __future__ import annotations

import random
from typing import Any

import pytest

from interleaf.core.structured import Grammar, GrammarCompiler, GrammarState
from interleaf.core.token_checks import HeldSequence, StepGrammars, TokenChecker
from interleaf.errors import GrammarError
from interleaf.frontend.grammar import grammar_source
from interleaf.messages import Vocabulary
from interleaf.reasoning import ReasoningMarkers
from interleaf.structured_params import StructuredOutputsParams
from tests.loader.tiny import byte_level_bpe

VOCAB_SIZE = 384
EOS = 2
CHOICES = ["the quick", "the quick brown fox", "theory", "naïve", "日本語", "a\nb"]


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(Vocabulary(byte_level_bpe().to_str(), VOCAB_SIZE, [EOS]))


@pytest.fixture(scope="module")
def choices(compiler: GrammarCompiler) -> Grammar:
    return compiler.submit(grammar_source(StructuredOutputsParams(choice=CHOICES), {})).result()


@pytest.fixture(scope="module")
def token_bytes() -> list[bytes]:
    """What each token spells; nothing for special ones. A token alone may be half a character."""
    from interleaf.frontend.token_bytes import TokenBytes

    spelled = TokenBytes.of(byte_level_bpe())
    assert spelled is not None
    return [b"" if token < 3 else spelled[token] for token in range(VOCAB_SIZE)]


def masks_of(*held: HeldSequence) -> dict[str, list[set[int]]]:
    """Sequence -> the tokens that each of its masks lets through; single tokens are told the same."""
    step = StepGrammars(held, TokenChecker(2))
    found: dict[str, list[set[int]]] = {one.sequence_id: [] for one in held}
    for place in range(1 + max(len(one.drafts) for one in held)):
        some = [one.sequence_id for one in held if place <= len(one.drafts)]
        masks = step.fill([(name, place) for name in some])
        for i, name in enumerate(some):
            mask = int.from_bytes(masks[i * step.row_bytes : (i + 1) * step.row_bytes], "little")
            found[name].append({token for token in range(VOCAB_SIZE) if mask >> token & 1})
            assert found[name][-1] == {token for token in range(VOCAB_SIZE) if fits(step, name, place, token)}
    return found


def fits(step: StepGrammars, name: str, place: int, token: int) -> bool:
    return step.first_misfit(name, place, [token]) is None


def allowed(state: GrammarState) -> set[int]:
    return masks_of(HeldSequence("x", state, []))["x"][0]


def by_brute_force(written: bytes, token_bytes: list[bytes]) -> set[int]:
    texts = [choice.encode() for choice in CHOICES]
    fitting = {
        token
        for token, spelled in enumerate(token_bytes)
        if spelled and any(text.startswith(written + spelled) for text in texts)
    }
    return fitting | ({EOS} if written in texts else set())


def walk(grammar: Grammar, token_bytes: list[bytes], seed: int) -> tuple[list[int], list[set[int]]]:
    """Random tokens to an end, and the mask before each of them."""
    rng = random.Random(seed)
    state = grammar.start([], [])
    tokens: list[int] = []
    masks = []
    while not tokens or tokens[-1] != EOS:
        masks.append(allowed(state))
        tokens.append(rng.choice(sorted(masks[-1])))
        state.accept([tokens[-1]])
        assert state.error is None
    return tokens, masks


def test_masks_are_those_of_brute_force(choices: Grammar, token_bytes: list[bytes]) -> None:
    ends = set()
    for seed in range(20):
        tokens, masks = walk(choices, token_bytes, seed)
        written = b""
        for i, (token, mask) in enumerate(zip(tokens, masks, strict=True)):
            fitting = by_brute_force(written, token_bytes)
            forced = choices.start([], tokens[:i]).forced()
            # Where only one text is possible, it is written as the tokenizer would.
            assert mask == ({forced[0]} if forced else fitting) and mask <= fitting
            written += token_bytes[token]
        ends.add(written.decode())
    assert ends <= set(CHOICES) and len(ends) > 3


def test_a_state_is_rebuilt_from_its_tokens(choices: Grammar, token_bytes: list[bytes]) -> None:
    tokens, masks = walk(choices, token_bytes, 3)
    for i, mask in enumerate(masks):
        assert allowed(choices.start([], tokens[:i])) == mask


def test_masks_of_drafts_are_those_of_the_tokens_one_by_one(choices: Grammar, token_bytes: list[bytes]) -> None:
    tokens, masks = walk(choices, token_bytes, 5)
    states = {f"s{i}": choices.start([], tokens[:i]) for i in range(len(tokens))}
    for _ in range(2):  # The states are left as they were.
        found = masks_of(*(HeldSequence(name, state, tokens[i:-1]) for i, (name, state) in enumerate(states.items())))
        assert found == {f"s{i}": masks[i:] for i in range(len(tokens))}


@pytest.mark.parametrize("drafts", [False, True])
def test_stop_tokens_may_follow_where_the_text_may_end(choices: Grammar, drafts: bool) -> None:
    stop = byte_level_bpe().token_to_id("Z")
    tokens = byte_level_bpe().encode("the quick brown fox").ids
    ends = [byte_level_bpe().decode(tokens[:i]) in CHOICES for i in range(len(tokens) + 1)]
    assert sum(ends) == 2
    if drafts:
        [found] = masks_of(HeldSequence("x", choices.start([stop], []), tokens)).values()
        assert [stop in mask for mask in found] == ends
    else:
        assert [stop in allowed(choices.start([stop], tokens[:i])) for i in range(len(tokens) + 1)] == ends
    state = choices.start([stop], [*tokens, stop])
    assert state.error is None and allowed(state) == {EOS, stop}


def test_after_the_end_only_the_end_may_follow(choices: Grammar) -> None:
    tokens = byte_level_bpe().encode("theory").ids
    assert allowed(choices.start([], tokens)) == {EOS}
    assert allowed(choices.start([], [*tokens, EOS, EOS])) == {EOS}


def test_a_token_that_does_not_fit_is_an_error(choices: Grammar) -> None:
    state = choices.start([], byte_level_bpe().encode("zebra").ids)
    assert state.error is not None and state.error.endswith(".")


def test_forced_tokens_and_fitting_drafts(choices: Grammar) -> None:
    def encode(text: str) -> list[int]:
        return list(byte_level_bpe().encode(text).ids)

    state = choices.start([], encode("日"))
    assert byte_level_bpe().decode([*encode("日"), *state.forced()]) in ("日本", "日本語")
    assert state.fitting([*state.forced(), *encode("x")]) == state.forced()
    assert choices.start([], []).forced() == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"json": {"not": {}}}, 'Unimplemented keys: ["not"]'),
        ({"json": {"$ref": "#"}}, "no text follows it"),
        ({"json": "false"}, "Unsatisfiable"),
        ({"json": {"$ref": "#/$defs/none"}}, "does not exist"),
        ({"regex": "(?=a)"}, "look-around"),
        ({"regex": "("}, "unclosed group"),
        ({"grammar": "start: other"}, "unknown name"),
    ],
)
def test_what_cannot_be_compiled(compiler: GrammarCompiler, source: dict[str, Any], reason: str) -> None:
    with pytest.raises(GrammarError) as caught:
        compiler.submit(grammar_source(StructuredOutputsParams(**source), {})).result()
    assert reason in str(caught.value) and str(caught.value).endswith(".")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_vocabulary_that_cannot_be_used() -> None:
    for vocabulary in (Vocabulary("{}", 10, [1]), Vocabulary(byte_level_bpe().to_str(), VOCAB_SIZE, [])):
        with pytest.raises(GrammarError, match=r"[Ss]tructured output"):
            GrammarCompiler(vocabulary).submit('{"grammars": [{"json_schema": {}}]}').result()


# ---- reasoning before the text ----

START, END = [10, 11], [12, 13]


def thinking(choices: Grammar, token_ids: list[int], is_open: bool = False) -> GrammarState:
    return choices.start([], token_ids, ReasoningMarkers(START, END, is_open))


def test_reasoning_is_free_and_the_text_behind_it_is_held(choices: Grammar) -> None:
    everything = set(range(VOCAB_SIZE))
    first = allowed(choices.start([], []))
    assert allowed(thinking(choices, [])) == first | {START[0]}
    assert allowed(thinking(choices, START[:1])) == {START[1]}
    for reasoning in ([], [50], [50, END[0]]):
        assert allowed(thinking(choices, [*START, *reasoning])) == everything
        assert allowed(thinking(choices, reasoning, is_open=True)) == everything
    assert allowed(thinking(choices, [*START, 50, *END])) == first
    tokens = byte_level_bpe().encode("theory").ids
    for start in ([*START, 50, *END], []):
        state = thinking(choices, [*start, *tokens])
        assert state.error is None and allowed(state) == {EOS}


def test_drafts_across_the_end_of_reasoning(choices: Grammar) -> None:
    tokens = [50, *END, *byte_level_bpe().encode("theory").ids, EOS]
    state = thinking(choices, START)
    assert state.forced() == [] and thinking(choices, []).fitting([START[0]]) == []
    assert state.fitting([*tokens[:4], 50]) == tokens[:4] and state.fitting(tokens) == tokens
    [found] = masks_of(HeldSequence("x", state, tokens[:-1])).values()
    assert found == [allowed(thinking(choices, [*START, *tokens[:i]])) for i in range(len(tokens))]
