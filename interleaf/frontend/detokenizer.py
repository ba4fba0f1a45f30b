"""Turning tokens into text as they come, without ever showing half a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

from interleaf.frontend.token_bytes import TokenBytes

if TYPE_CHECKING:
    from interleaf.frontend.tokenizer import Tokenizer

CONTEXT_TOKENS = 6
"""Prompt tokens that can share a character or a decoding rule with the output's first tokens."""

MAX_HELD_TOKENS = 8
"""A character has at most four bytes, so that more tokens than this are held only by broken text."""

REPLACEMENT = "\ufffd"


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
