"""Incremental detokenization: the pieces make up the whole, and no piece ends within a character."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from interleaf.frontend.detokenizer import MAX_HELD_TOKENS, IncrementalDetokenizer
from interleaf.frontend.tokenizer import Tokenizer, load_tokenizer
from tests.frontend.test_tokenizer import TEXTS, from_metadata, random_texts, sentencepiece_metadata
from tests.loader.tiny import byte_level_bpe

REPLACEMENT = "\ufffd"


def tiny() -> Tokenizer:
    """All 256 bytes, a few merges, three special tokens."""
    return Tokenizer(byte_level_bpe(), {"eos_token": "<|im_end|>"}, {})


def sentencepiece() -> Tokenizer:
    return from_metadata(sentencepiece_metadata())


def word_piece() -> Tokenizer:
    """A tokenizer whose tokens have no bytes of their own: the decoder sets spaces between them."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    words = ["[UNK]", "the", "fox", "##es", "##ing", "run", ",", ".", "日", "##本"]
    backend = Backend(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens([AddedToken("[SEP]", special=True, normalized=False)])
    return Tokenizer(backend, {}, {})


def without_decoder() -> Tokenizer:
    tokenizer = word_piece()
    tokenizer.backend.decoder = None
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": tiny,
    "sentencepiece": sentencepiece,
    "word piece": word_piece,
    "no decoder": without_decoder,
}


@pytest.fixture(scope="module")
def builtin_tokenizer() -> Tokenizer:
    return load_tokenizer(None)


def pieces(tokenizer: Tokenizer, prompt: list[int], output: list[int], skip: bool, chunk: int = 1) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip, True)
    found = [detokenizer.append(output[i : i + chunk]) for i in range(0, len(output), chunk)]
    return [*found, detokenizer.flush()]


def test_which_tokenizers_have_token_bytes(builtin_tokenizer: Tokenizer) -> None:
    assert builtin_tokenizer.token_bytes is not None
    assert [KINDS[kind]().token_bytes is not None for kind in KINDS] == [True, True, False, False]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_texts_in_pieces(builtin_tokenizer: Tokenizer, skip: bool, chunk: int) -> None:
    for text in TEXTS + random_texts(100):
        ids = builtin_tokenizer.encode(text)
        found = pieces(builtin_tokenizer, [1, 4093], ids, skip, chunk)
        assert "".join(found) == builtin_tokenizer.decode(ids, skip_special_tokens=skip)
        if REPLACEMENT not in text:
            assert not any(REPLACEMENT in piece for piece in found)


@pytest.mark.parametrize("skip", [True, False])
def test_random_tokens_are_decoded_as_a_whole(builtin_tokenizer: Tokenizer, skip: bool) -> None:
    """Random tokens of a byte-level vocabulary are mostly invalid UTF-8."""
    rng = random.Random(0)
    for tokenizer in (builtin_tokenizer, tiny()):
        for _ in range(200):
            output = [rng.choice([rng.randrange(len(tokenizer)), rng.randrange(3, 259)]) for _ in range(40)]
            for chunk in (1, 3):
                whole = tokenizer.decode(output, skip_special_tokens=skip)
                assert "".join(pieces(tokenizer, [], output, skip, chunk)) == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [True, False])
def test_output_continues_its_prompt(kind: str, skip: bool) -> None:
    tokenizer = KINDS[kind]()
    rng = random.Random(0)
    for _ in range(150):
        if kind == "sentencepiece":
            # Bytes that are no UTF-8 come out differently there: see the test below.
            ids = [rng.choice([1, 2, *range(259, len(tokenizer))]) for _ in range(30)]
            place = rng.randrange(len(ids))
            ids[place:place] = [3 + byte for byte in "é🙂".encode()]
        else:
            ids = [rng.randrange(len(tokenizer)) for _ in range(30)]
        cut = rng.randrange(len(ids))
        before = tokenizer.decode(ids[:cut], skip_special_tokens=skip)
        whole = tokenizer.decode(ids, skip_special_tokens=skip)
        if before.endswith(REPLACEMENT):
            continue
        assert "".join(pieces(tokenizer, ids[:cut], ids[cut:], skip)) == whole[len(before) :]


def test_a_character_that_begins_in_the_prompt() -> None:
    tokenizer = tiny()
    ids = tokenizer.encode("x\U0001f642y", add_special_tokens=False)
    assert len(ids) == 6
    assert pieces(tokenizer, ids[:3], ids[3:], True) == ["", "\U0001f642", "y", ""]


def test_nothing_is_shown_before_a_character_is_complete() -> None:
    tokenizer = tiny()
    ids = tokenizer.encode("\U0001f642", add_special_tokens=False)
    assert pieces(tokenizer, [], ids, True) == ["", "", "", "\U0001f642", ""]
    assert pieces(tokenizer, [], ids[:2], True) == ["", "", REPLACEMENT]
    assert pieces(tokenizer, [], [*ids[:2], *tokenizer.encode("a")], True) == ["", "", REPLACEMENT + "a", ""]


def test_byte_fallback() -> None:
    tokenizer = sentencepiece()
    hello = tokenizer.convert_tokens_to_ids("\u2581hello")
    assert hello is not None
    smile = [3 + byte for byte in "\U0001f642".encode()]
    assert pieces(tokenizer, [], [hello, *smile, hello], True) == ["hello", "", "", "", "\U0001f642", " hello", ""]
    assert "".join(pieces(tokenizer, [1], [hello], True)) == "hello"
    assert "".join(pieces(tokenizer, [1], [hello], False)) == " hello"
    assert "".join(pieces(tokenizer, [hello], [hello], True)) == " hello"
    broken = "".join(pieces(tokenizer, [], [hello, *smile[:2], hello], True))
    assert broken.strip(REPLACEMENT) == broken and broken.replace(REPLACEMENT, "") == "hello hello"


def test_broken_text_is_not_held_forever() -> None:
    tokenizer = without_decoder()
    tokenizer.backend.add_tokens([REPLACEMENT])
    token = tokenizer.convert_tokens_to_ids(REPLACEMENT)
    assert token is not None
    found = pieces(tokenizer, [], [token] * (MAX_HELD_TOKENS * 3), False)
    assert "".join(found) == tokenizer.decode([token] * (MAX_HELD_TOKENS * 3))
    assert sum(bool(piece) for piece in found) >= 2


def test_spaces_between_special_tokens() -> None:
    tokenizer = without_decoder()
    ids = tokenizer.encode("the [SEP][SEP] fox")
    assert tokenizer.decode(ids) == "the [SEP] [SEP] fox"
    spaced = IncrementalDetokenizer(tokenizer, [], False, True)
    glued = IncrementalDetokenizer(tokenizer, [], False, False)
    assert spaced.append(ids) == "the [SEP] [SEP] fox"
    assert glued.append(ids) == "the [SEP][SEP] fox"


def test_ids_without_a_token(builtin_tokenizer: Tokenizer) -> None:
    assert pieces(builtin_tokenizer, [60000], [60000, 4093, 60001], True)[1:] == [
        builtin_tokenizer.decode([4093]),
        "",
        "",
    ]
