"""One step of the model: apply the scheduler's differences, lay out the inputs, run, sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from interleaf.config import EngineConfig
from interleaf.logits_processor import LogitsProcessor
from interleaf.messages import NewRequest, SchedulerOutput, StepOutput, TokenLogprobs
from interleaf.models.registry import CausalModel
from interleaf.ops import Array, LayerCache, ModelInput, Ops, StepSize
from interleaf.worker.batch import NO_LOGPROBS, Batch
from interleaf.worker.pooler import Pooler
from interleaf.worker.sampler import Sampler

LOGITS_ROWS = 64
"""Logits are made for this many tokens at a time, which bounds their memory whatever the vocabulary."""


@dataclass(slots=True)
class _Layout:
    """The sequences computed in a step: names, batch rows, tokens of each, and where each begins in T."""

    sequence_ids: list[str]
    rows: np.ndarray
    counts: np.ndarray
    starts: np.ndarray


class Runner:
    """Owns the batch and the recorded passes; the model, caches and ops are given.

    Args:
        logits_processors: custom ones, beside those that are built in.
    """

    def __init__(
        self,
        config: EngineConfig,
        ops: Ops,
        model: CausalModel,
        caches: Sequence[LayerCache],
        logits_processors: Sequence[type[LogitsProcessor[Any]]] = (),
    ) -> None:
        scheduler = config.scheduler
        self._ops = ops
        self._caches = caches
        self._block_size = config.cache.block_size
        self._batch = Batch(scheduler.max_num_seqs, scheduler.max_model_len, config.cache.block_size)
        self._sampler = Sampler(config, ops, self._batch, logits_processors)
        inputs = _new_inputs(scheduler.max_num_batched_tokens, scheduler.max_num_seqs, self._batch.block_tables)
        residual: list[Array] = []

        def body() -> Array:
            residual[:] = [model.forward(inputs, caches)]
            return residual[0]

        # The passes keep what they refer to; they must not refer to this object, or closing it would free nothing.
        self._inputs = inputs
        self._body = ops.graph(body, inputs, logits=False)
        self._head = ops.graph(lambda: model.logits(residual[0], inputs), inputs, logits=True)
        self._pooler = Pooler(
            self._batch, inputs, lambda: ops.graph(lambda: model.hidden(residual[0], inputs), inputs, logits=True)
        )

    def execute(self, scheduled: SchedulerOutput) -> StepOutput:
        forks = self._apply(scheduled)
        output = StepOutput(scheduled.step, {})
        if not scheduled.num_scheduled_tokens:
            return output
        layout = self._lay_out(scheduled)
        size = StepSize(int(layout.counts.sum()), len(layout.rows))
        self._body.run(size)
        computed = self._batch.num_computed_tokens[layout.rows] + layout.counts
        self._sample(layout, computed, forks, size, output)
        self._prompt_logprobs(layout, computed, size, output)
        output.pooled = self._pooler.pool(layout.sequence_ids, layout.rows, layout.starts, layout.counts, size)
        self._batch.num_computed_tokens[layout.rows] = computed
        return output

    def _apply(self, scheduled: SchedulerOutput) -> list[NewRequest]:
        """Bring the batch up to date, in the order that `SchedulerOutput` promises; returns the forks."""
        for sequence_id in scheduled.removed_sequence_ids:
            row = self._batch.remove(sequence_id)
            if row is not None:
                self._sampler.remove(row)
                self._pooler.remove(row)
        for request in scheduled.new_requests:
            row = self._batch.add(request)
            self._sampler.add(row, request)
            self._pooler.add(row, request)
        for update in scheduled.block_table_updates:
            self._batch.update_block_table(update)
        if scheduled.block_copies:
            self._ops.copy_blocks(self._caches, scheduled.block_copies)
        return [request for request in scheduled.new_requests if request.fork_of is not None]

    def _lay_out(self, scheduled: SchedulerOutput) -> _Layout:
        """Write the step's inputs: every sequence's next tokens, one after the other."""
        batch, inputs = self._batch, self._inputs
        sequence_ids = list(scheduled.num_scheduled_tokens)
        rows = np.fromiter((batch.row_of[name] for name in sequence_ids), np.int64, len(sequence_ids))
        counts = np.fromiter(scheduled.num_scheduled_tokens.values(), np.int32, len(sequence_ids))
        num_sequences, num_tokens = len(rows), int(counts.sum())
        inputs.query_start[1 : num_sequences + 1] = np.cumsum(counts)
        starts = inputs.query_start[:num_sequences].copy()
        computed = batch.num_computed_tokens[rows]
        inputs.context_lengths[:num_sequences] = computed + counts
        inputs.sequence_rows[:num_sequences] = rows
        token_rows = np.repeat(rows, counts)
        positions = np.arange(num_tokens, dtype=np.int32) + np.repeat(computed - starts, counts)
        inputs.positions[:num_tokens] = positions
        inputs.token_ids[:num_tokens] = batch.token_ids[token_rows, positions]
        blocks, offsets = np.divmod(positions, self._block_size)
        inputs.slots[:num_tokens] = batch.block_tables[token_rows, blocks] * self._block_size + offsets
        return _Layout(sequence_ids, rows, counts, starts)

    def _logits(self, index: np.ndarray, size: StepSize) -> Iterator[tuple[slice, np.ndarray]]:
        """Logits of the tokens in `index`, `LOGITS_ROWS` at a time; each is valid until the next."""
        for begin in range(0, len(index), LOGITS_ROWS):
            part = slice(begin, min(begin + LOGITS_ROWS, len(index)))
            count = part.stop - part.start
            self._inputs.logits_index[:count] = index[part]
            logits = self._head.run(StepSize(size.num_tokens, size.num_sequences, count))
            assert logits is not None
            yield part, logits

    def _again(self, index: np.ndarray, size: StepSize) -> np.ndarray:
        """The logits of at most `LOGITS_ROWS` tokens of this step once more."""
        [(_, logits)] = self._logits(index, size)
        return logits

    def _sample(
        self, layout: _Layout, computed: np.ndarray, forks: list[NewRequest], size: StepSize, output: StepOutput
    ) -> None:
        """Sample for every sequence whose tokens are all computed, and for its forks from the same logits."""
        batch = self._batch
        complete = np.flatnonzero((computed == batch.num_tokens[layout.rows]) & batch.samples[layout.rows])
        names = [layout.sequence_ids[i] for i in complete]
        last_token = layout.starts + layout.counts - 1
        index, rows = last_token[complete], layout.rows[complete]
        if forks:
            place_of = {name: last_token[i] for i, name in enumerate(layout.sequence_ids)}
            names += [fork.sequence_id for fork in forks]
            index = np.append(index, [place_of[fork.fork_of or ""] for fork in forks])
            rows = np.append(rows, [batch.row_of[fork.sequence_id] for fork in forks])
        for part, logits in self._logits(index, size):
            tokens, entries = self._sampler.sample(logits, rows[part], partial(self._again, index[part], size))
            batch.append(rows[part], tokens)
            for name, token in zip(names[part], tokens.tolist(), strict=True):
                output.sampled_token_ids[name] = [token]
            for name, entry in zip(names[part], entries, strict=False):
                if entry is not None:
                    output.logprobs[name] = [entry]
        if self._sampler.failures:
            failures = self._sampler.failures
            output.errors = {
                name: failures[row] for name, row in zip(names, rows.tolist(), strict=True) if row in failures
            }

    def _prompt_logprobs(self, layout: _Layout, computed: np.ndarray, size: StepSize, output: StepOutput) -> None:
        """The logits of prompt token p - 1 tell the logprob of prompt token p."""
        batch = self._batch
        for i in np.flatnonzero(batch.num_prompt_logprobs[layout.rows] != NO_LOGPROBS).tolist():
            row, before = int(layout.rows[i]), int(computed[i] - layout.counts[i])
            first = max(before + 1, int(batch.num_prompt_logprobs_done[row]), 1)
            last = min(int(computed[i]), int(batch.num_prompt_tokens[row]) - 1)
            positions = np.arange(first, last + 1)
            tokens = batch.token_ids[row, first : last + 1]
            counts = np.full(len(positions), batch.num_prompt_logprobs[row])
            entries: list[TokenLogprobs] = []
            for part, logits in self._logits(layout.starts[i] + positions - 1 - before, size):
                entries += self._sampler.logprobs(logits, np.arange(len(logits)), tokens[part], counts[part])
            if entries:
                output.prompt_logprobs[layout.sequence_ids[i]] = (first, entries)


def _new_inputs(max_tokens: int, max_sequences: int, block_tables: np.ndarray) -> ModelInput:
    return ModelInput(
        token_ids=np.zeros(max_tokens, np.int32),
        positions=np.zeros(max_tokens, np.int32),
        slots=np.zeros(max_tokens, np.int32),
        query_start=np.zeros(max_sequences + 1, np.int32),
        context_lengths=np.zeros(max_sequences, np.int32),
        sequence_rows=np.zeros(max_sequences, np.int32),
        block_tables=block_tables,
        logits_index=np.zeros(LOGITS_ROWS, np.int32),
    )
