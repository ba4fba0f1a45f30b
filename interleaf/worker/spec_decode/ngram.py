"""Guesses from the text itself: what followed the last time that it had the same few tokens. (Saxena 2023)"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interleaf.messages import NewRequest
from interleaf.worker.batch import Batch
from interleaf.worker.spec_decode.proposer import StepView

_FACTOR = 0x9E3779B97F4A7C15
_BITS64 = (1 << 64) - 1
_LEAST_TOKENS = 512
_MOST_STEPS = 64
"""Of the walk through runs that share a slot: a long text of one word must not cost more."""


class _RunTable:
    """The ends of all runs of n tokens, by the hash of the run: the latest of each slot, and from each the one before.

    Args:
        capacity: tokens that the text may have; a power of two.
    """

    def __init__(self, n: int, capacity: int) -> None:
        self._n = n
        self._mask = 2 * capacity - 1
        self._latest = np.zeros(2 * capacity, np.int32)
        self._before = np.zeros(capacity + 1, np.int32)

    def add(self, tokens: np.ndarray, first: int, end: int) -> None:
        """Add the runs whose end (the position behind them) is one of first .. end - 1."""
        n = self._n
        if end - first <= 16:
            run = tokens[first - n : end - 1].tolist()
            for i in range(end - first):
                slot = _hash(run[i : i + n]) & self._mask
                self._before[first + i] = self._latest[slot]
                self._latest[slot] = first + i
            return
        slots = (_hashes(tokens[first - n : end - 1], n) & np.uint64(self._mask)).astype(np.int64)
        order = np.argsort(slots, kind="stable")
        slots, ends = slots[order], (np.arange(first, end)[order]).astype(np.int32)
        self._before[ends] = self._latest[slots]
        again = np.flatnonzero(slots[1:] == slots[:-1]) + 1
        self._before[ends[again]] = ends[again - 1]
        self._latest[slots] = ends

    def find(self, tokens: np.ndarray, run: list[int]) -> int | None:
        """The last end of this run."""
        end = int(self._latest[_hash(run) & self._mask])
        for _ in range(_MOST_STEPS):
            if not end:
                break
            if tokens[end - self._n : end].tolist() == run:
                return end
            end = int(self._before[end])
        return None


class NgramIndex:
    """Where each run of n tokens of one sequence was last followed by something, for each n of a range.

    Grows with the sequence: a new token and a lookup cost a few operations for each n. A token takes 12 to 24 bytes
    for each n.
    """

    def __init__(self, lengths: range) -> None:
        self._lengths = lengths
        self._tables: list[_RunTable] = []
        self._capacity = 0
        self._num_indexed = 0

    def find(self, tokens: np.ndarray) -> int | None:
        """The position behind the last earlier occurrence of the longest run of tokens that ends the text.

        Args:
            tokens: int32 [tokens of the sequence]: those of the call before, and more.
        """
        self._extend(tokens)
        tail = tokens[-self._lengths[-1] :].tolist()
        for n, table in zip(reversed(self._lengths), reversed(self._tables), strict=True):
            if n < len(tokens):
                end = table.find(tokens, tail[-n:])
                if end is not None:
                    return end
        return None

    def _extend(self, tokens: np.ndarray) -> None:
        """Index the runs that have become followed by a token."""
        count = len(tokens)
        if count > self._capacity:
            self._capacity = max(_LEAST_TOKENS, 1 << count.bit_length())
            self._tables = [_RunTable(n, self._capacity) for n in self._lengths]
            self._num_indexed = 0
        for n, table in zip(self._lengths, self._tables, strict=True):
            first = max(self._num_indexed, n)
            if first < count:
                table.add(tokens, first, count)
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
