"""`bad_words`: token sequences that must not be completed."""

from __future__ import annotations

import numpy as np

from interleaf.messages import NewRequest


class BadWords:
    def __init__(self) -> None:
        self._words: dict[int, list[list[int]]] = {}
        self._outputs: dict[int, list[int]] = {}

    @property
    def holds_rows(self) -> bool:
        return bool(self._words)

    def add(self, row: int, request: NewRequest) -> None:
        if request.bad_word_token_ids:
            self._words[row] = request.bad_word_token_ids
            self._outputs[row] = list(request.token_ids[request.num_prompt_tokens :])

    def remove(self, row: int) -> None:
        self._words.pop(row, None)
        self._outputs.pop(row, None)

    def append(self, row: int, token: int) -> None:
        if row in self._outputs:
            self._outputs[row].append(token)

    def apply(self, logits: np.ndarray, rows: list[int]) -> None:
        for i, row in enumerate(rows):
            for word in self._words.get(row, ()):
                *start, last = word
                if not start or self._outputs[row][-len(start) :] == start:
                    logits[i, last] = -np.inf
