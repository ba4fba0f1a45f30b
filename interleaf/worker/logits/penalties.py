"""Repetition, frequency and presence penalties.

Only the tokens a sequence holds are touched: their ids and counts are kept in arrays that grow with it, so a step
costs as much as the sequence has distinct tokens, not as much as there are words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interleaf.logits_processor import LogitsProcessor, SequenceStart


class _Seen:
    """Distinct tokens of one sequence and how often each was generated."""

    def __init__(self, sequence: SequenceStart) -> None:
        params = sequence.params
        self.repetition = params.repetition_penalty
        self.frequency = params.frequency_penalty
        self.presence = params.presence_penalty
        self._index = {token: i for i, token in enumerate(dict.fromkeys(sequence.prompt_token_ids))}
        self._tokens = np.array([*self._index, *[0] * 64], np.int32)
        self._counts = np.zeros(len(self._tokens), np.float32)
        for token in sequence.output_token_ids:
            self.append(token)

    def append(self, token: int) -> None:
        place = self._index.get(token)
        if place is None:
            place = self._index[token] = len(self._index)
            if place == len(self._tokens):
                self._tokens = np.concatenate([self._tokens, np.zeros(place, np.int32)])
                self._counts = np.concatenate([self._counts, np.zeros(place, np.float32)])
            self._tokens[place] = token
        self._counts[place] += 1

    def apply(self, logits: np.ndarray) -> None:
        tokens, counts = self._tokens[: len(self._index)], self._counts[: len(self._index)]
        values = logits[tokens]
        if self.repetition != 1.0:
            factor = np.float32(self.repetition)
            values = np.where(values > 0, values / factor, values * factor)
        values = values - np.float32(self.frequency) * counts
        logits[tokens] = values - np.float32(self.presence) * (counts > 0)


class Penalties(LogitsProcessor[_Seen]):
    """`repetition_penalty` over prompt and output (Keskar et al. 2019); the other two over the output."""

    def start(self, sequence: SequenceStart) -> _Seen | None:
        params = sequence.params
        if params.repetition_penalty == 1.0 and params.frequency_penalty == 0.0 and params.presence_penalty == 0.0:
            return None
        return _Seen(sequence)

    def advance(self, state: _Seen, token: int) -> _Seen:
        state.append(token)
        return state

    def apply(self, logits: np.ndarray, held: Sequence[tuple[int, _Seen]]) -> None:
        for i, seen in held:
            seen.apply(logits[i])
