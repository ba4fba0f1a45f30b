"""Logits of tokens that a grammar does not let through become minus infinity.

This comes behind all other changes to logits. Where those have left no token that the grammar lets through (if
`min_tokens` forbids the end, and the grammar anything else), the grammar has the last word: the row starts again from
the raw logits.
"""

from __future__ import annotations

import numpy as np

from interleaf.messages import TokenMasks

SUMMANDS = np.where((np.arange(256)[:, None] >> np.arange(8)) & 1, 0.0, -np.inf).astype(np.float32)
"""[256, 8]: what to add to eight logits for each value of a mask's byte. Quicker than anything with a branch."""


class StepMasks:
    """The masks of one step, by batch row and place behind the sequence's tokens.

    Args:
        masks: of the step; taken when the first row asks.
        row_of: sequence -> batch row.
        num_tokens: int [rows]: of each sequence before the step; a mask is for that position or a draft's behind it.
    """

    def __init__(self, masks: TokenMasks, row_of: dict[str, int], num_tokens: np.ndarray) -> None:
        self._masks = masks
        self._first = {row_of[name]: (place, int(num_tokens[row_of[name]])) for name, place in masks.place_of.items()}
        self._filled: np.ndarray | None = None

    @classmethod
    def of(cls, masks: TokenMasks | None, row_of: dict[str, int], num_tokens: np.ndarray) -> StepMasks | None:
        """None for a step without masks."""
        return None if masks is None else cls(masks, row_of, num_tokens)

    def places(self, rows: np.ndarray, positions: np.ndarray) -> list[tuple[int, int]]:
        """(i, number of the mask) of each of `rows` that has one; `positions[i]` is that of the sampled token."""
        first = self._first
        return [
            (i, first[row][0] + position - first[row][1])
            for i, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True))
            if row in first
        ]

    def apply(self, logits: np.ndarray, raw: dict[int, np.ndarray], places: list[tuple[int, int]]) -> None:
        """Change float32 logits [L, V] in place.

        Args:
            raw: i -> the row as the model made it, of those rows that something else has changed.
            places: what `places` has found.
        """
        if self._filled is None:
            self._filled = np.frombuffer(self._masks.wait(), np.uint8).reshape(-1, self._masks.row_bytes)
        summands = np.empty((self._masks.row_bytes, 8), np.float32)
        for i, place in places:
            np.take(SUMMANDS, self._filled[place], axis=0, out=summands, mode="clip")
            forbid = summands.reshape(-1)[: logits.shape[1]]
            logits[i] += forbid
            if i in raw and not np.isfinite(logits[i]).any():
                np.add(raw[i], forbid, out=logits[i])
