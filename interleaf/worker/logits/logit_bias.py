"""`logit_bias`: numbers added to the logits of named tokens."""

from __future__ import annotations

import numpy as np

from interleaf.messages import NewRequest


class LogitBias:
    def __init__(self) -> None:
        self._biases: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def holds_rows(self) -> bool:
        return bool(self._biases)

    def add(self, row: int, request: NewRequest) -> None:
        biases = request.params.logit_bias
        if biases:
            self._biases[row] = (np.array(list(biases), np.int32), np.array(list(biases.values()), np.float32))

    def remove(self, row: int) -> None:
        self._biases.pop(row, None)

    def append(self, row: int, token: int) -> None:
        """A bias does not depend on what was sampled."""

    def apply(self, logits: np.ndarray, rows: list[int]) -> None:
        for i, row in enumerate(rows):
            if row in self._biases:
                tokens, biases = self._biases[row]
                logits[i, tokens] += biases
