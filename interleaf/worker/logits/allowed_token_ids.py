"""`allowed_token_ids`: nothing else may be sampled."""

from __future__ import annotations

import numpy as np

from interleaf.messages import NewRequest


class AllowedTokenIds:
    def __init__(self) -> None:
        self._allowed: dict[int, np.ndarray] = {}

    @property
    def holds_rows(self) -> bool:
        return bool(self._allowed)

    def add(self, row: int, request: NewRequest) -> None:
        if request.params.allowed_token_ids is not None:
            self._allowed[row] = np.unique(np.array(request.params.allowed_token_ids, np.int32))

    def remove(self, row: int) -> None:
        self._allowed.pop(row, None)

    def append(self, row: int, token: int) -> None:
        """What is allowed does not depend on what was sampled."""

    def apply(self, logits: np.ndarray, rows: list[int]) -> None:
        for i, row in enumerate(rows):
            allowed = self._allowed.get(row)
            if allowed is not None:
                kept = logits[i, allowed]
                logits[i] = -np.inf
                logits[i, allowed] = kept
