"""Repetition, frequency and presence penalties.

Only the tokens a sequence holds are touched: their ids and counts are kept in arrays that grow with it, so a step
costs as much as the sequence has distinct tokens, not as much as there are words.
"""

from __future__ import annotations

import numpy as np

from interleaf.messages import NewRequest


class _Seen:
    """Distinct tokens of one sequence and how often each was generated."""

    def __init__(self, request: NewRequest) -> None:
        params = request.params
        self.repetition = params.repetition_penalty
        self.frequency = params.frequency_penalty
        self.presence = params.presence_penalty
        prompt = request.token_ids[: request.num_prompt_tokens]
        self._index = {token: i for i, token in enumerate(dict.fromkeys(prompt))}
        self._tokens = np.array([*self._index, *[0] * 64], np.int32)
        self._counts = np.zeros(len(self._tokens), np.float32)
        for token in request.token_ids[request.num_prompt_tokens :]:
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


class Penalties:
    """`repetition_penalty` over prompt and output (Keskar et al. 2019); the other two over the output."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    @property
    def holds_rows(self) -> bool:
        return bool(self._seen)

    def add(self, row: int, request: NewRequest) -> None:
        params = request.params
        if params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
            self._seen[row] = _Seen(request)

    def remove(self, row: int) -> None:
        self._seen.pop(row, None)

    def append(self, row: int, token: int) -> None:
        if row in self._seen:
            self._seen[row].append(token)

    def apply(self, logits: np.ndarray, rows: list[int]) -> None:
        for i, row in enumerate(rows):
            if row in self._seen:
                self._seen[row].apply(logits[i])
