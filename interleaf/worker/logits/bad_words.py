"""`bad_words`: token sequences that must not be completed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interleaf.logits_processor import LogitsProcessor, SequenceStart


@dataclass(slots=True)
class _Words:
    words: list[list[int]]
    output: list[int]


class BadWords(LogitsProcessor[_Words]):
    def start(self, sequence: SequenceStart) -> _Words | None:
        words = sequence.bad_word_token_ids
        return _Words(words, list(sequence.output_token_ids)) if words else None

    def advance(self, state: _Words, token: int) -> _Words:
        state.output.append(token)
        return state

    def apply(self, logits: np.ndarray, held: Sequence[tuple[int, _Words]]) -> None:
        for i, state in held:
            for word in state.words:
                *start, last = word
                if not start or state.output[-len(start) :] == start:
                    logits[i, last] = -np.inf
