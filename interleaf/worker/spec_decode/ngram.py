"""Guesses from the text itself: what followed the last time that it had the same few tokens. (Saxena 2023)"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interleaf.messages import NewRequest
from interleaf.worker.batch import Batch
from interleaf.worker.spec_decode.proposer import StepView

_FACTOR = 0x9E3779B97F4A7C15
_BITS64 = (1 << 64) - 1
_LEAST_SLOTS = 1024


class NgramIndex:
    """Where each run of n tokens of one sequence was last followed by something, for each n of a range.

    A table for each n holds, at a hash of the run, the position behind it; a run that meets another's place takes it.
    Four bytes for each token and n, twice as many at most; a new token and a lookup each cost a few operations for
    each n.
    """

    def __init__(self, lengths: range) -> None:
        self._lengths = lengths
        self._tables: dict[int, np.ndarray] = {}
        self._num_slots = 0
        self._num_indexed = 0

    def find(self, tokens: np.ndarray) -> int | None:
        """The position behind the last earlier occurrence of the longest run of tokens that ends the text.

        Args:
            tokens: int32 [tokens of the sequence]: those of the call before, and more.
        """
        self._extend(tokens)
        tail = tokens[-self._lengths[-1] :].tolist()
        for n in reversed(self._lengths):
            if n < len(tokens):
                end = int(self._tables[n][_hash(tail[-n:]) & (self._num_slots - 1)])
                if end and tokens[end - n : end].tolist() == tail[-n:]:
                    return end
        return None

    def _extend(self, tokens: np.ndarray) -> None:
        """Index the runs that have become followed by a token."""
        count, mask = len(tokens), self._num_slots - 1
        if count - 1 > self._num_slots // 2:
            self._num_slots = max(_LEAST_SLOTS, 1 << (2 * count).bit_length())
            self._tables = {n: np.zeros(self._num_slots, np.int32) for n in self._lengths}
            self._num_indexed, mask = 0, self._num_slots - 1
        few = count - self._num_indexed <= 16
        for n in self._lengths:
            first = max(self._num_indexed - n, 0)
            followed = tokens[first:-1]
            if len(followed) < n:
                continue
            if few:
                run = followed.tolist()
                for i in range(len(run) - n + 1):
                    self._tables[n][_hash(run[i : i + n]) & mask] = first + i + n
            else:
                slots = _hashes(followed, n) & np.uint64(mask)
                self._tables[n][slots.astype(np.int64)] = np.arange(first + n, count)
        self._num_indexed = count


def _hash(tokens: Sequence[int]) -> int:
    """A polynomial of the tokens modulo 2^64, its upper half folded into the lower."""
    value = 0
    for token in tokens:
        value = (value * _FACTOR + token + 1) & _BITS64
    return value ^ (value >> 32)


def _hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """`_hash` of each run of n tokens: uint64 [tokens - n + 1]."""
    wide = tokens.astype(np.uint64) + np.uint64(1)
    count = len(wide) - n + 1
    values = np.zeros(count, np.uint64)
    for i in range(n):
        values = values * np.uint64(_FACTOR) + wide[i : i + count]
    return values ^ (values >> np.uint64(32))


def copied(tokens: np.ndarray, start: int, count: int) -> list[int]:
    """`count` tokens from `start` on; behind the end of the text the copy goes on with what it has copied."""
    source: list[int] = tokens[start : start + count].tolist()
    return [source[i % len(source)] for i in range(count)]


class NgramProposer:
    """
    Args:
        shortest, longest: runs of tokens that are looked up, the longest first.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self._lengths = range(shortest, longest + 1)
        self._indexes: dict[int, NgramIndex] = {}

    def add(self, row: int, request: NewRequest) -> None:
        self._indexes[row] = NgramIndex(self._lengths)

    def remove(self, row: int) -> None:
        self._indexes.pop(row, None)

    def observe(self, step: StepView) -> None:
        """Tokens are indexed when drafts are wanted."""

    def propose(self, batch: Batch, wanted: Sequence[tuple[int, int]]) -> list[list[int]]:
        return [self._propose(batch, row, count) for row, count in wanted]

    def _propose(self, batch: Batch, row: int, count: int) -> list[int]:
        tokens = batch.token_ids[row, : batch.num_tokens[row]]
        start = self._indexes[row].find(tokens)
        return [] if start is None else copied(tokens, start, count)
