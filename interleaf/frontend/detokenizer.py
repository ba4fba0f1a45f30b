"""Turning tokens into text as they come, without ever showing half a character."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interleaf.frontend.tokenizer import Tokenizer

CONTEXT_TOKENS = 6
"""Prompt tokens that can share a character or a decoding rule with the output's first tokens."""

MAX_HELD_TOKENS = 8
"""A character has at most four bytes, so that more tokens than this are held only by broken text."""

REPLACEMENT = "\ufffd"
SPACE = "\u2581"


class TokenBytes:
    """Token id -> the bytes it stands for, for tokenizers where that does not depend on its neighbours.

    That holds for byte-level BPE and for SentencePiece with byte fallback, but for one thing: the
    latter may drop one space at the very beginning of a text (`strips_first_space`).
    """

    def __init__(self, tokenizer: Tokenizer, byte_level: bool, strips_first_space: bool) -> None:
        self.strips_first_space = strips_first_space
        self._tokenizer = tokenizer
        self._byte_level = byte_level
        self._known: dict[int, bytes] = {}

    @staticmethod
    def of(tokenizer: Tokenizer) -> TokenBytes | None:
        """The table for this tokenizer, or None if its tokens have no bytes of their own."""
        decoder = tokenizer.backend.decoder
        if decoder is None:
            return None
        steps = _steps(json.loads(decoder.__getstate__()))
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            return TokenBytes(tokenizer, byte_level=True, strips_first_space=False)
        if kinds[:3] != ["Replace", "ByteFallback", "Fuse"] or steps[0].get("pattern") != {"String": SPACE}:
            return None
        if kinds[3:] and (kinds[3:] != ["Strip"] or (steps[3]["content"], steps[3]["start"]) != (" ", 1)):
            return None
        return TokenBytes(tokenizer, byte_level=False, strips_first_space=bool(kinds[3:]))

    def __getitem__(self, token_id: int) -> bytes:
        found = self._known.get(token_id)
        if found is None:
            token = self._tokenizer.backend.id_to_token(token_id)
            found = self._known[token_id] = b"" if token is None else self._spell(token)
        return found

    def _spell(self, token: str) -> bytes:
        if self._byte_level:
            alphabet = byte_alphabet()
            spelled = [alphabet.get(character) for character in token]
            return token.encode() if None in spelled else bytes(byte for byte in spelled if byte is not None)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return token.replace(SPACE, " ").encode()


class IncrementalDetokenizer:
    """The text of one sequence, a piece at a time.

    The pieces together are what `decode` makes of all output tokens behind the prompt. Bytes that
    are no valid UTF-8 become U+FFFD as soon as it is certain that nothing can complete them.

    Args:
        tokenizer: whose tokens they are.
        prompt_token_ids: what comes before; only its end is looked at.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: False keeps adjacent special tokens together where the
            tokenizer would put a space between them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        skipped = tokenizer.special_id_set if skip_special_tokens else frozenset()
        table = tokenizer.token_bytes
        if table is not None:
            self._stream: _ByteStream | _WindowStream = _ByteStream(table, prompt_token_ids, skipped)
        else:
            joined = skip_special_tokens or spaces_between_special_tokens
            glued = frozenset() if joined else tokenizer.special_id_set
            self._stream = _WindowStream(tokenizer, prompt_token_ids, skipped, glued)
        # The bound method: one call less for each token of each running sequence.
        self.append = self._stream.append

    def flush(self) -> str:
        """What is still held back, once no more tokens come."""
        return self._stream.flush()


class _ByteStream:
    """For tokenizers whose tokens are bytes: look them up and decode UTF-8 as it comes."""

    def __init__(self, table: TokenBytes, prompt: Sequence[int], skipped: frozenset[int]) -> None:
        self.table = table
        self.skipped = skipped
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        shown = (token for token in reversed(prompt) if token not in skipped)
        context = [token for token, _ in zip(shown, range(CONTEXT_TOKENS), strict=False)]
        self.decoder.decode(b"".join(table[token] for token in reversed(context)))
        self.at_start = table.strips_first_space and not context

    def append(self, token_ids: Sequence[int]) -> str:
        table, skipped = self.table, self.skipped
        raw = b"".join([table[token] for token in token_ids if token not in skipped])
        if self.at_start and raw:
            self.at_start = False
            raw = raw.removeprefix(b" ")
        return self.decoder.decode(raw)

    def flush(self) -> str:
        return self.decoder.decode(b"", True)


class _WindowStream:
    """For any other tokenizer: decode a short window of tokens twice and take the difference.

    `ids[begin:shown]` is context that was shown before; `ids[shown:]` is what is still held back.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], skipped: frozenset[int], glued: frozenset[int]
    ) -> None:
        self.tokenizer = tokenizer
        self.skipped = skipped
        self.glued = glued
        self.context = [token for token in prompt if token not in skipped][-CONTEXT_TOKENS:]
        self.held: list[int] = []
        self.last_glued = bool(prompt) and prompt[-1] in glued

    def append(self, token_ids: Sequence[int]) -> str:
        return "".join([self._step(token) for token in token_ids if token not in self.skipped])

    def flush(self) -> str:
        return self._show(final=True)

    def _step(self, token: int) -> str:
        glued = token in self.glued
        if glued and self.last_glued:
            text = self._show(final=True)
            self.context = [token]
            return text + (self.tokenizer.backend.id_to_token(token) or "")
        self.last_glued = glued
        self.held.append(token)
        return self._show(final=len(self.held) > MAX_HELD_TOKENS)

    def _show(self, final: bool) -> str:
        """Text of the held tokens, or "" while it may still change."""
        if not self.held:
            return ""
        before = self.tokenizer.decode(self.context)
        whole = self.tokenizer.decode(self.context + self.held)
        if whole.endswith(REPLACEMENT) and not final:
            return ""
        self.context, self.held = self.held[-CONTEXT_TOKENS:], []
        return whole[len(before) :]


def byte_alphabet() -> dict[str, int]:
    """The 256 printable characters by which byte-level BPE writes bytes: character -> byte."""
    if not _ALPHABET:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        _ALPHABET.update({chr(byte): byte for byte in printable})
        _ALPHABET.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return _ALPHABET


_ALPHABET: dict[str, int] = {}


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """A decoder's steps in order, sequences taken apart."""
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _steps(part)]
