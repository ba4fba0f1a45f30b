"""`min_tokens`: no token that would end the text before there are this many."""

from __future__ import annotations

import numpy as np

from interleaf.messages import NewRequest


class MinTokens:
    def __init__(self) -> None:
        self._missing: dict[int, int] = {}
        self._stops: dict[int, np.ndarray] = {}

    @property
    def holds_rows(self) -> bool:
        return bool(self._missing)

    def add(self, row: int, request: NewRequest) -> None:
        params = request.params
        missing = params.min_tokens - (len(request.token_ids) - request.num_prompt_tokens)
        stops = {*request.eos_token_ids, *(params.stop_token_ids or ())}
        if missing > 0 and stops:
            self._missing[row] = missing
            self._stops[row] = np.array(sorted(stops), np.int32)

    def remove(self, row: int) -> None:
        self._missing.pop(row, None)
        self._stops.pop(row, None)

    def append(self, row: int, token: int) -> None:
        if row in self._missing:
            self._missing[row] -= 1
            if self._missing[row] <= 0:
                self.remove(row)

    def apply(self, logits: np.ndarray, rows: list[int]) -> None:
        for i, row in enumerate(rows):
            if row in self._stops:
                logits[i, self._stops[row]] = -np.inf
