"""Guesses of a smaller model with the same vocabulary. (Leviathan et al. 2023)

The draft model has layers of its own in the same paged cache: block i of a sequence's table holds the keys of the same
tokens in both. Its entries are made when drafts are wanted, so it may be behind: `_DraftCache` knows how far each block
is good. Drafts themselves are written behind the sequence's last block, into spare blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interleaf.config import EngineConfig
from interleaf.messages import NewRequest
from interleaf.models.registry import CausalModel
from interleaf.ops import LayerCache, Ops, SamplingInput, StepSize
from interleaf.worker.batch import Batch
from interleaf.worker.model_input import LOGITS_ROWS, lay_out, new_inputs
from interleaf.worker.spec_decode.proposer import StepView
from interleaf.worker.spec_decode.rejection import DraftDistributions


def num_spare_blocks(config: EngineConfig) -> int:
    """Blocks of the draft model's layers beyond those of the cache."""
    return _spare_blocks_each(config) * _most_sequences(config)


def _spare_blocks_each(config: EngineConfig) -> int:
    assert config.speculative is not None
    return -(-config.speculative.num_speculative_tokens // config.cache.block_size) + 1


def _most_sequences(config: EngineConfig) -> int:
    assert config.speculative is not None
    return min(config.speculative.disable_by_batch_size, config.scheduler.max_num_seqs)


@dataclass(frozen=True, slots=True)
class DraftModel:
    """A loaded draft model; its layers' storage has the cache's blocks and `num_spare_blocks` more."""

    ops: Ops
    model: CausalModel
    caches: Sequence[LayerCache]


class _DraftCache:
    """How many tokens the draft model has computed: of each row's sequence, and from the beginning of each block."""

    def __init__(self, num_rows: int, num_blocks: int, block_size: int) -> None:
        self.of_row = np.zeros(num_rows, np.int32)
        self._of_block = np.zeros(num_blocks, np.int32)
        self._block_size = block_size

    def add(self, row: int, request: NewRequest) -> None:
        """What the prefix cache (or a parent) has computed, the draft model may have computed with it."""
        num_full = request.num_computed_tokens // self._block_size
        good = self._of_block[request.block_ids[:num_full]]
        short = np.flatnonzero(good < self._block_size)
        self.of_row[row] = (
            num_full * self._block_size if not len(short) else int(short[0] * self._block_size + good[short[0]])
        )

    def overwrite(self, table: np.ndarray, row: int, start: int, end: int) -> None:
        """The model has computed positions [start, end) of a row: in blocks that may have held something else."""
        first = max(start, int(self.of_row[row]))
        if first < end:
            blocks = table[first // self._block_size : -(-end // self._block_size)]
            self._of_block[blocks[0]] = min(self._of_block[blocks[0]], first % self._block_size)
            self._of_block[blocks[1:]] = 0

    def copy(self, source: int, destination: int) -> None:
        self._of_block[destination] = self._of_block[source]

    def advance(self, table: np.ndarray, row: int, end: int) -> None:
        """The draft model has computed a row's positions before `end`."""
        size, start = self._block_size, int(self.of_row[row])
        for entry in range(start // size, -(-end // size)):
            self._of_block[table[entry]] = min(end - entry * size, size)
        self.of_row[row] = end


@dataclass(slots=True)
class _Pass:
    """Sequences that the draft model computes together: their rows, places, and next positions [start, end)."""

    places: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class DraftModelProposer:
    """
    Args:
        distributions: where the drafts' probabilities are left for rejection sampling; None where it is not used.
    """

    def __init__(
        self,
        config: EngineConfig,
        draft: DraftModel,
        distributions: DraftDistributions | None,
    ) -> None:
        assert config.speculative is not None
        scheduler, block_size = config.scheduler, config.cache.block_size
        ops, model, caches = draft.ops, draft.model, draft.caches
        self._ops, self._caches, self._distributions = ops, caches, distributions
        self._greedy = config.speculative.draft_sample_method == "greedy"
        self._block_size = block_size
        self._num_blocks = config.cache.num_blocks
        self._cache = _DraftCache(scheduler.max_num_seqs, config.cache.num_blocks, block_size)
        self._spare_each = _spare_blocks_each(config)
        most = _most_sequences(config)
        width = -(-scheduler.max_model_len // block_size) + self._spare_each
        self._tables = np.zeros((most, width), np.int32)
        self._budget = scheduler.max_num_batched_tokens
        self._inputs = inputs = new_inputs(self._budget, most, self._tables)
        state: list[Any] = []

        def body() -> None:
            state[:] = [model.forward(inputs, caches)]

        eager = not model.recordable
        self._body = ops.graph(body, inputs, logits=False, eager=eager)
        self._head = ops.graph(lambda: model.logits(state[0], inputs), inputs, logits=True, eager=eager)

    def add(self, row: int, request: NewRequest) -> None:
        self._cache.add(row, request)

    def remove(self, row: int) -> None:
        """What is cached may serve others."""
        if self._distributions is not None:
            self._distributions.forget(row)

    def observe(self, step: StepView) -> None:
        """Follow what happened to the blocks."""
        if step.block_copies:
            self._ops.copy_blocks(self._caches, step.block_copies)
            for source, destination in step.block_copies:
                self._cache.copy(source, destination)
        if self._distributions is not None:
            for row in step.rows.tolist():
                self._distributions.forget(row)
        batch = step.batch
        for row, start in zip(step.rows.tolist(), step.starts.tolist(), strict=True):
            self._cache.overwrite(batch.block_tables[row], row, start, int(batch.num_computed_tokens[row]))

    def propose(self, batch: Batch, wanted: Sequence[tuple[int, int]]) -> list[list[int]]:
        rows = np.array([row for row, _ in wanted])
        counts = np.array([count for _, count in wanted])
        for place, row in enumerate(rows.tolist()):
            self._lay_table(batch, place, row)
        tokens = np.zeros((len(rows), int(counts.max()) + 1), np.int32)
        live = self._catch_up(batch, rows, tokens)
        ends = batch.num_tokens[rows]
        for number in range(1, int(counts.max())):
            live = live[counts[live] > number]
            if len(live):
                positions = ends[live] + number - 1
                part = _Pass(live, rows[live], positions, positions + 1)
                self._run(part, tokens[live, number - 1])
                tokens[live, number] = self._sample(batch, part, np.arange(len(live)))
        caught_up = self._cache.of_row[rows] == ends - 1
        return [tokens[i, : counts[i]].tolist() if caught_up[i] else [] for i in range(len(rows))]

    def _lay_table(self, batch: Batch, place: int, row: int) -> None:
        """The sequence's blocks, with spare ones behind those that are filled."""
        num_filled = -(-int(batch.num_computed_tokens[row]) // self._block_size)
        first_spare = self._num_blocks + place * self._spare_each
        self._tables[place, :num_filled] = batch.block_tables[row, :num_filled]
        self._tables[place, num_filled : num_filled + self._spare_each] = np.arange(
            first_spare, first_spare + self._spare_each
        )

    def _catch_up(self, batch: Batch, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Compute what is missing, as far as the token budget goes; returns the places that have a first draft.

        The last token of each is computed, but not counted: its block may not be its own yet.
        """
        starts, ends = self._cache.of_row[rows], batch.num_tokens[rows]
        room = np.maximum(self._budget - (np.cumsum(ends - starts) - (ends - starts)), 0)
        stops = np.minimum(ends, starts + room)
        live = np.flatnonzero(stops > starts)
        part = _Pass(live, rows[live], starts[live], stops[live])
        counts = part.ends - part.starts
        token_rows = np.repeat(part.rows, counts)
        positions = np.arange(counts.sum()) + np.repeat(part.starts - (np.cumsum(counts) - counts), counts)
        self._run(part, batch.token_ids[token_rows, positions])
        for place, row in zip(live.tolist(), part.rows.tolist(), strict=True):
            self._cache.advance(batch.block_tables[row], row, min(int(stops[place]), int(ends[place]) - 1))
        done = np.flatnonzero(stops[live] == ends[live])
        if len(done):
            tokens[live[done], 0] = self._sample(batch, part, done)
        return live[done]

    def _run(self, part: _Pass, tokens: np.ndarray) -> None:
        """Compute tokens, those of each sequence in a row; their logits are there until the next run."""
        counts = part.ends - part.starts
        lay_out(self._inputs, self._block_size, part.places, part.starts, counts)
        self._inputs.token_ids[: len(tokens)] = tokens
        self._body.run(StepSize(len(tokens), len(counts)))

    def _sample(self, batch: Batch, part: _Pass, which: np.ndarray) -> np.ndarray:
        """A token behind the last one of `which` of the sequences that were run: int32."""
        last = np.cumsum(part.ends - part.starts) - 1
        size = StepSize(int(last[-1]) + 1, len(last))
        found = np.zeros(len(which), np.int32)
        for begin in range(0, len(which), LOGITS_ROWS):
            some = which[begin : begin + LOGITS_ROWS]
            self._inputs.logits_index[: len(some)] = last[some]
            logits = self._head.run(StepSize(size.num_tokens, size.num_sequences, len(some)))
            assert logits is not None
            rows, positions = part.rows[some], part.ends[some].astype(np.int32)
            found[begin : begin + LOGITS_ROWS] = self._choose(batch, logits, rows, positions)
        return found

    def _choose(self, batch: Batch, logits: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        sampling = batch.sampling(rows, positions)
        if self._greedy:
            sampling = SamplingInput(
                np.zeros(len(rows), np.float32),
                sampling.top_k,
                sampling.top_p,
                sampling.min_p,
                sampling.seeds,
                sampling.positions,
            )
        if self._distributions is not None:
            return self._distributions.draft(self._ops, logits, rows, sampling)
        return self._ops.sample(logits, sampling)
