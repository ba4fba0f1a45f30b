"""Which sequences of a step have their first keys in the same blocks, so that attention reads these once for all."""

from __future__ import annotations

import numpy as np

from interleaf.ops import MOST_SHARED, SHARED_CHUNK, ModelInput

MOST_TOKENS = 8
"""Of a sequence in a step: prompts share enough among their own tokens."""


class SharedPrefixes:
    """Sets `shared_chunks` and `shared_with` of the inputs.

    A block that two tables have at the same place holds the same tokens behind the same prefix, so the last block of a
    chunk tells of the whole chunk. Full blocks of a running sequence stay what they are: what was found holds until
    other sequences run or a further chunk is full.
    """

    def __init__(self, inputs: ModelInput, block_size: int) -> None:
        self._inputs = inputs
        self._block_size = block_size
        self._full = np.zeros(0, np.int32)

    def note(self, rows: np.ndarray, starts: np.ndarray, counts: np.ndarray, changed: bool) -> None:
        """Look at the sequences of a step.

        Args:
            rows: int [S]: of each sequence's block table.
            starts, counts: int32 [S]: tokens of each that were computed before, and that are computed now.
            changed: whether the step before had others.
        """
        full = np.where(counts <= MOST_TOKENS, starts // SHARED_CHUNK, 0)
        if not changed and np.array_equal(full, self._full):
            return
        self._full = full
        count = len(rows)
        chunks, leaders = self._inputs.shared_chunks[:count], self._inputs.shared_with[:count]
        chunks[:] = 0
        leaders[:] = np.arange(count)
        left = MOST_SHARED
        for first, end, shared in self._runs(rows, full):
            num_tokens = int(counts[first:end].sum())
            shared = min(shared, left // num_tokens)
            if shared:
                chunks[first:end], leaders[first:end] = shared, first
                left -= shared * num_tokens

    def _runs(self, rows: np.ndarray, full: np.ndarray) -> list[tuple[int, int, int]]:
        """(first sequence, end, chunks that these have in common)."""
        most = int(full.max())
        if not most or len(rows) < 2:
            return []
        ends = ((np.arange(most) + 1) * SHARED_CHUNK - 1) // self._block_size
        table = self._inputs.block_tables[rows[:, None], ends]
        same = np.logical_and.accumulate(table[1:] == table[:-1], axis=1).sum(axis=1)
        common = np.minimum(same, np.minimum(full[1:], full[:-1]))
        return _runs(common.tolist()) if common.any() else []


def _runs(common: list[int]) -> list[tuple[int, int, int]]:
    """Runs in which neighbours have chunks in common, `common[i]` of sequences i and i + 1.

    A run takes its next sequence in where that spares no less than was spared without.
    """
    runs = []
    first, shared = 0, 0
    for i, both in enumerate([*common, 0]):
        size = i - first
        together = min(shared, both) if size else both
        if together and together * (size + 1) >= shared * size:
            shared = together
            continue
        if shared:
            runs.append((first, i + 1, shared))
        # The next may share more with the one behind it.
        first, shared = i + 1, 0
    return runs
