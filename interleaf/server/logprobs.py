"""Logprobs in the three forms that the APIs have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from interleaf.outputs import Logprob, PromptLogprobs, SampleLogprobs
from interleaf.server.protocol.chat import ChatLogprobs, TokenLogprob, TopLogprob
from interleaf.server.protocol.common import PromptLogprob, PromptLogprobsField
from interleaf.server.protocol.completions import CompletionLogprobs

if TYPE_CHECKING:
    from interleaf.frontend.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0
"""JSON has no infinity: impossible tokens get this."""


class LogprobWriter:
    """Writes the logprobs of one request.

    Args:
        as_token_ids: name tokens "token_id:123" in place of their text.
    """

    def __init__(self, tokenizer: Tokenizer, as_token_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_token_ids = as_token_ids

    def chat(self, token_ids: Sequence[int], entries: SampleLogprobs, count: int) -> ChatLogprobs:
        """With the `count` likeliest tokens at each position."""
        return ChatLogprobs(
            [
                TokenLogprob(
                    self._name(token, entry[token]),
                    finite(entry[token].logprob),
                    self._bytes(token, entry[token]),
                    [
                        TopLogprob(self._name(other, one), finite(one.logprob), self._bytes(other, one))
                        for other, one in _likeliest(entry, count)
                    ],
                )
                for token, entry in zip(token_ids, entries, strict=True)
            ]
        )

    def legacy(
        self, token_ids: Sequence[int], entries: Sequence[Mapping[int, Logprob] | None], count: int, offset: int
    ) -> CompletionLogprobs:
        """As completions have them; `offset` is where in the text the first token begins."""
        told = CompletionLogprobs([], [], [], [])
        for token, entry in zip(token_ids, entries, strict=True):
            name = self._name(token, entry[token] if entry else None)
            told.text_offset.append(offset)
            told.tokens.append(name)
            offset += len(name)
            if entry is None:
                told.token_logprobs.append(None)
                told.top_logprobs.append(None)
                continue
            told.token_logprobs.append(finite(entry[token].logprob))
            top: dict[str, float] = {}
            for other, one in _likeliest(entry, count):
                top.setdefault(self._name(other, one), finite(one.logprob))
            top.setdefault(name, finite(entry[token].logprob))
            told.top_logprobs.append(top if count else None)
        return told

    def _name(self, token: int, entry: Logprob | None) -> str:
        if self._as_token_ids:
            return f"token_id:{token}"
        if entry is None or entry.decoded_token is None:
            return self._tokenizer.decode([token])
        return entry.decoded_token

    def _bytes(self, token: int, entry: Logprob) -> list[int]:
        """A token's own bytes, also where they are no whole character."""
        table = self._tokenizer.token_bytes
        return list(self._name_bytes(entry) if table is None else table[token])

    def _name_bytes(self, entry: Logprob) -> bytes:
        return (entry.decoded_token or "").encode("utf-8", "replace")


def of_prompt(entries: PromptLogprobs | None) -> PromptLogprobsField | None:
    """As vLLM writes them."""
    if entries is None:
        return None
    return [
        None
        if entry is None
        else {
            str(token): PromptLogprob(finite(one.logprob), one.rank, one.decoded_token) for token, one in entry.items()
        }
        for entry in entries
    ]


def finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def _likeliest(entry: Mapping[int, Logprob], count: int) -> list[tuple[int, Logprob]]:
    """The `count` likeliest tokens in order, out of those and the sampled one."""
    ranked = [(token, one) for token, one in entry.items() if one.rank is not None and (one.rank <= count or count < 0)]
    return sorted(ranked, key=lambda item: item[1].rank or 0)
