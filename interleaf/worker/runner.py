"""One step of the model: apply the scheduler's differences, lay out the inputs, run, sample."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from interleaf.config import EngineConfig
from interleaf.logits_processor import LogitsProcessor
from interleaf.messages import NewRequest, SchedulerOutput, StepOutput, TokenLogprobs
from interleaf.models.registry import CausalModel
from interleaf.ops import Array, LayerCache, Ops, StepSize
from interleaf.worker.batch import NO_LOGPROBS, Batch
from interleaf.worker.model_input import LOGITS_ROWS, lay_out, new_inputs
from interleaf.worker.pooler import Pooler
from interleaf.worker.sampler import Sampler
from interleaf.worker.spec_decode.proposer import StepView
from interleaf.worker.spec_decode.speculator import Speculator
from interleaf.worker.token_masks import StepMasks


@dataclass(slots=True)
class _Layout:
    """The sequences computed in a step: names, batch rows, tokens of each, and where each begins in T.

    The last `num_drafts` of a sequence's tokens are drafts.
    """

    sequence_ids: list[str]
    rows: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    num_drafts: np.ndarray


@dataclass(slots=True)
class _Samples:
    """What is sampled in a step, sequence by sequence: L tokens, of which those behind a wrong draft won't count.

    Fields:
        sequence_ids: whose token it is.
        rows: int64: its batch row.
        index: int32: the token of T whose logits it is sampled from.
        positions: int32: its place in the sequence.
        drafts: int32: what it was guessed to be; -1 behind the last draft.
    """

    sequence_ids: list[str]
    rows: np.ndarray
    index: np.ndarray
    positions: np.ndarray
    drafts: np.ndarray


class Runner:
    """Owns the batch and the recorded passes; the model, caches and ops are given.

    Args:
        logits_processors: custom ones, beside those that are built in.
        speculator: makes drafts; None where there are none.
    """

    def __init__(
        self,
        config: EngineConfig,
        ops: Ops,
        model: CausalModel,
        caches: Sequence[LayerCache],
        logits_processors: Sequence[type[LogitsProcessor[Any]]] = (),
        speculator: Speculator | None = None,
    ) -> None:
        scheduler = config.scheduler
        self._ops = ops
        places = {place: cache for (_, place), cache in zip(config.cache.layout.places, caches, strict=True)}
        self._stores = list(places.values())
        self._block_size = config.cache.block_size
        self._batch = Batch(
            scheduler.max_num_seqs, scheduler.max_model_len, self._block_size, len(config.cache.layout.windows)
        )
        self._speculator = speculator
        self._sampler = Sampler(
            config, ops, self._batch, logits_processors, None if speculator is None else speculator.distributions
        )
        inputs = new_inputs(scheduler.max_num_batched_tokens, scheduler.max_num_seqs, *self._batch.tables)
        residual: list[Array] = []

        def body() -> Array:
            residual[:] = [model.forward(inputs, caches)]
            return residual[0]

        # The passes keep what they refer to; they must not refer to this object, or closing it would free nothing.
        self._inputs = inputs
        eager = not model.recordable
        self._body = ops.graph(body, inputs, logits=False, eager=eager)
        self._head = ops.graph(lambda: model.logits(residual[0], inputs), inputs, logits=True, eager=eager)
        self._pooler = Pooler(
            self._batch,
            inputs,
            lambda: ops.graph(lambda: model.hidden(residual[0], inputs), inputs, logits=True, eager=eager),
        )

    def execute(self, scheduled: SchedulerOutput) -> StepOutput:
        begin = time.perf_counter()
        forks = self._apply(scheduled)
        output = StepOutput(scheduled.step, {})
        if not scheduled.num_scheduled_tokens:
            return output
        layout = self._lay_out(scheduled)
        size = StepSize(int(layout.counts.sum()), len(layout.rows))
        self._sampler.masks = StepMasks.of(scheduled.masks, self._batch.row_of, self._batch.num_tokens)
        self._body.run(size)
        computed = self._batch.num_computed_tokens[layout.rows] + layout.counts - layout.num_drafts
        complete = (computed == self._batch.num_tokens[layout.rows]) & self._batch.samples[layout.rows]
        self._sample(self._samples(layout, complete, forks), size, output)
        if self._batch.num_candidates[layout.rows].any():
            self._find_candidates(layout, computed, size, output)
        self._note_failures(layout, forks, output)
        self._prompt_logprobs(layout, computed, size, output)
        output.pooled = self._pooler.pool(layout.sequence_ids, layout.rows, layout.starts, layout.counts, size)
        starts = self._batch.num_computed_tokens[layout.rows]
        # All tokens of a sequence that has sampled are computed, but for the last.
        computed = np.where(complete, self._batch.num_tokens[layout.rows] - 1, computed)
        self._batch.num_computed_tokens[layout.rows] = computed
        if self._speculator is not None:
            seconds = time.perf_counter() - begin
            step = StepView(self._batch, layout.rows, starts, scheduled.block_copies, size, seconds)
            output.draft_token_ids = self._speculator.propose(step, scheduled, output)
        return output

    def _apply(self, scheduled: SchedulerOutput) -> list[NewRequest]:
        """Bring the batch up to date, in the order that `SchedulerOutput` promises; returns the forks."""
        for sequence_id in scheduled.removed_sequence_ids:
            row = self._batch.remove(sequence_id)
            if row is not None:
                self._sampler.remove(row)
                self._pooler.remove(row)
                if self._speculator is not None:
                    self._speculator.remove(row)
        for request in scheduled.new_requests:
            row = self._batch.add(request)
            self._sampler.add(row, request)
            self._pooler.add(row, request)
            if self._speculator is not None:
                self._speculator.add(row, request)
        if scheduled.picked_token_ids:
            self._take_picked(scheduled.picked_token_ids)
        for update in scheduled.block_table_updates:
            self._batch.update_block_table(update)
        if scheduled.block_copies:
            self._ops.copy_blocks(self._stores, scheduled.block_copies)
        return [request for request in scheduled.new_requests if request.fork_of is not None]

    def _take_picked(self, tokens: dict[str, int]) -> None:
        """Put the tokens that the core picked behind their beams."""
        batch = self._batch
        rows = np.fromiter((batch.row_of[name] for name in tokens), np.int64, len(tokens))
        batch.put(rows, batch.num_tokens[rows], np.fromiter(tokens.values(), np.int32, len(tokens)))
        for row, token in zip(rows.tolist(), tokens.values(), strict=True):
            self._sampler.advance(row, token)

    def _lay_out(self, scheduled: SchedulerOutput) -> _Layout:
        """Write the step's inputs: every sequence's next tokens, one after the other."""
        batch, inputs = self._batch, self._inputs
        sequence_ids = list(scheduled.num_scheduled_tokens)
        rows = np.fromiter((batch.row_of[name] for name in sequence_ids), np.int64, len(sequence_ids))
        counts = np.fromiter(scheduled.num_scheduled_tokens.values(), np.int32, len(sequence_ids))
        num_drafts = self._put_drafts(scheduled, sequence_ids)
        counts += num_drafts
        token_rows, positions = lay_out(inputs, self._block_size, rows, batch.num_computed_tokens[rows], counts)
        inputs.token_ids[: len(positions)] = batch.token_ids[token_rows, positions]
        starts = inputs.query_start[: len(rows)].copy()
        return _Layout(sequence_ids, rows, counts, starts, num_drafts)

    def _put_drafts(self, scheduled: SchedulerOutput, sequence_ids: list[str]) -> np.ndarray:
        """Set each sequence's drafts behind its tokens; returns how many they are."""
        batch, drafts = self._batch, scheduled.draft_token_ids
        if not drafts:
            return np.zeros(len(sequence_ids), np.int32)
        for name, tokens in drafts.items():
            row = batch.row_of[name]
            end = batch.num_tokens[row]
            batch.token_ids[row, end : end + len(tokens)] = tokens
        return np.fromiter((len(drafts.get(name, ())) for name in sequence_ids), np.int32, len(sequence_ids))

    def _logits(self, index: np.ndarray, size: StepSize) -> Iterator[tuple[slice, np.ndarray]]:
        """Logits of the tokens in `index`, `LOGITS_ROWS` at a time; each is valid until the next."""
        for begin in range(0, len(index), LOGITS_ROWS):
            part = slice(begin, min(begin + LOGITS_ROWS, len(index)))
            count = part.stop - part.start
            self._inputs.logits_index[:count] = index[part]
            logits = self._head.run(StepSize(size.num_tokens, size.num_sequences, count))
            assert logits is not None
            yield part, logits

    def _again(self, index: np.ndarray, places: np.ndarray, size: StepSize) -> np.ndarray:
        """The logits of `index[places]` once more, of at most `LOGITS_ROWS` tokens of this step."""
        [(_, logits)] = self._logits(index, size)
        return logits if len(places) == len(logits) else logits[places]

    def _samples(self, layout: _Layout, complete: np.ndarray, forks: list[NewRequest]) -> _Samples:
        """One token for every sequence that is `complete` (and its forks), and one behind each of its drafts."""
        batch = self._batch
        last_token = layout.starts + layout.counts - layout.num_drafts - 1
        places = np.flatnonzero(complete)
        number: np.ndarray | int = 0
        if layout.num_drafts.any():
            counts = layout.num_drafts[places] + 1
            number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            places = np.repeat(places, counts)
        names = [layout.sequence_ids[i] for i in places]
        index, rows = last_token[places] + number, layout.rows[places]
        positions = batch.num_tokens[rows] + number
        drafts = np.full(len(rows), -1, np.int32)
        drafted = number < layout.num_drafts[places]
        drafts[drafted] = batch.token_ids[rows[drafted], positions[drafted]]
        if forks:
            place_of = {name: last_token[i] for i, name in enumerate(layout.sequence_ids)}
            fork_rows = np.array([batch.row_of[fork.sequence_id] for fork in forks])
            names += [fork.sequence_id for fork in forks]
            index = np.append(index, [place_of[fork.fork_of or ""] for fork in forks])
            rows = np.append(rows, fork_rows)
            positions = np.append(positions, batch.num_tokens[fork_rows])
            drafts = np.append(drafts, np.full(len(forks), -1))
        return _Samples(names, rows, index, positions.astype(np.int32), drafts)

    def _sample(self, samples: _Samples, size: StepSize, output: StepOutput) -> None:
        """Sample each sequence's tokens up to the first that its draft has not guessed.

        All at once, but of sequences whose logits depend on their tokens one at a time.
        """
        rows, positions = samples.rows, samples.positions
        ended: set[int] = set()
        followed = self._sampler.followed_rows if samples.drafts.max(initial=-1) >= 0 else set()
        for part, logits in self._logits(samples.index, size):
            left: Sequence[int] = range(part.start, part.stop)
            while taken := _first_or_free(left, rows, followed, ended) if followed else list(left):
                chosen = np.array(taken)
                places = chosen - part.start
                tokens, entries = self._sampler.sample(
                    logits if len(taken) == len(logits) else logits[places],
                    rows[chosen],
                    positions[chosen],
                    partial(self._again, samples.index[part], places, size),
                )
                kept = _kept(samples, taken, tokens, ended)
                self._batch.put(rows[chosen[kept]], positions[chosen[kept]], tokens[kept])
                for i in kept:
                    name = samples.sequence_ids[taken[i]]
                    output.sampled_token_ids.setdefault(name, []).append(int(tokens[i]))
                    if entries and (entry := entries[i]) is not None:
                        output.logprobs.setdefault(name, []).append(entry)
                left = sorted({*left} - {*taken})

    def _find_candidates(self, layout: _Layout, computed: np.ndarray, size: StepSize, output: StepOutput) -> None:
        """The likeliest next tokens of every beam whose tokens are all computed."""
        batch = self._batch
        complete = np.flatnonzero((computed == batch.num_tokens[layout.rows]) & (batch.num_candidates[layout.rows] > 0))
        index, rows = (layout.starts + layout.counts - 1)[complete], layout.rows[complete]
        names = [layout.sequence_ids[i] for i in complete]
        for part, logits in self._logits(index, size):
            found = self._sampler.candidates(
                logits, rows[part], partial(self._again, index[part], np.arange(len(logits)), size)
            )
            output.candidates.update(zip(names[part], found, strict=True))

    def _note_failures(self, layout: _Layout, forks: list[NewRequest], output: StepOutput) -> None:
        """Tell of sequences that a logits processor has failed on, be it before or in this step."""
        failures = self._sampler.failures
        if failures:
            row_of = self._batch.row_of
            names = [*layout.sequence_ids, *(fork.sequence_id for fork in forks)]
            output.errors = {name: failures[row_of[name]] for name in names if row_of[name] in failures}

    def _prompt_logprobs(self, layout: _Layout, computed: np.ndarray, size: StepSize, output: StepOutput) -> None:
        """The logits of prompt token p - 1 tell the logprob of prompt token p."""
        batch = self._batch
        for i in np.flatnonzero(batch.num_prompt_logprobs[layout.rows] != NO_LOGPROBS).tolist():
            row = int(layout.rows[i])
            before = int(batch.num_computed_tokens[row])
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


def _first_or_free(left: Iterable[int], rows: np.ndarray, followed: set[int], ended: set[int]) -> list[int]:
    """Of the samples `left`, those of rows that are not `followed`, and the first of each row that is.

    None of rows that have `ended`: a processor must not be told of tokens that do not count.
    """
    seen = ended & followed
    taken = []
    for place in left:
        row = int(rows[place])
        if row not in seen:
            taken.append(place)
            if row in followed:
                seen.add(row)
    return taken


def _kept(samples: _Samples, taken: list[int], tokens: np.ndarray, ended: set[int]) -> list[int]:
    """Which of the tokens sampled at `taken` count; adds to `ended` the rows whose drafts end, or are wrong."""
    kept = []
    for i, (place, token) in enumerate(zip(taken, tokens.tolist(), strict=True)):
        row = int(samples.rows[place])
        if row not in ended:
            kept.append(i)
            if token != samples.drafts[place]:
                ended.add(row)
    return kept
