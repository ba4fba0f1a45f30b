"""One step of the model: apply the scheduler's differences, lay out the inputs, run, sample."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from interleaf.config import EngineConfig
from interleaf.logits_processor import LogitsProcessor
from interleaf.messages import NewRequest, SchedulerOutput, StepOutput, TokenLogprobs
from interleaf.models.registry import CausalModel
from interleaf.ops import LayerCache, Ops, StepSize
from interleaf.worker.batch import Batch
from interleaf.worker.held_rows import HeldRows
from interleaf.worker.model_input import LOGITS_ROWS, new_inputs
from interleaf.worker.pooler import Pooler
from interleaf.worker.sampler import Sampler
from interleaf.worker.spec_decode.proposer import StepView
from interleaf.worker.spec_decode.speculator import Speculator
from interleaf.worker.step import Samples, Step


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
        ops.touch_ahead(self._stores, 0)
        self._block_size = config.cache.block_size
        self._batch = Batch(
            scheduler.max_num_seqs, scheduler.max_model_len, self._block_size, len(config.cache.layout.windows)
        )
        self._speculator = speculator
        self._sampler = Sampler(
            config, ops, self._batch, logits_processors, None if speculator is None else speculator.distributions
        )
        inputs = new_inputs(scheduler.max_num_batched_tokens, scheduler.max_num_seqs, *self._batch.tables)
        state: list[Any] = []

        def body() -> None:
            state[:] = [model.forward(inputs, caches)]

        self._step = Step(ops, self._batch, inputs, self._block_size)
        # The passes keep what they refer to; they must not refer to this object, or closing it would free nothing.
        self._inputs = inputs
        eager = not model.recordable
        self._body = ops.graph(body, inputs, logits=False, eager=eager)
        self._head = ops.graph(lambda: model.logits(state[0], inputs), inputs, logits=True, eager=eager)
        self._decoding = ops.decoding(self._body, self._head, self._batch.sampling_input, self._step.tokens)
        self._pooler = Pooler(
            self._batch,
            inputs,
            lambda: ops.graph(lambda: model.hidden(state[0], inputs), inputs, logits=True, eager=eager),
        )

    def execute(self, scheduled: SchedulerOutput) -> StepOutput:
        begin = time.perf_counter()
        forks = self._apply(scheduled)
        output = StepOutput(scheduled.step, {})
        if not scheduled.num_scheduled_tokens:
            return output
        step, batch = self._step, self._batch
        step.lay_out(scheduled)
        self._sampler.held = HeldRows.of(scheduled.grammars, batch.row_of, batch.num_tokens)
        samples = step.samples(forks)
        self._compute(samples, output, scheduled.num_decode_steps)
        if batch.beams:
            self._find_candidates(output)
        if self._sampler.failures:
            self._note_failures(forks, output)
        if batch.wanting_prompt_logprobs:
            self._prompt_logprobs(output)
        output.pooled = self._pooler.pool(step)
        if samples.drafts is not None:
            # All tokens of a sequence that has sampled are computed, but for the last.
            batch.num_computed_tokens[samples.rows] = batch.num_tokens[samples.rows] - 1
        if self._speculator is not None:
            seconds = time.perf_counter() - begin
            view = StepView(batch, step.rows, step.starts, scheduled.block_copies, step.size, seconds)
            output.draft_token_ids = self._speculator.propose(view, scheduled, output)
        return output

    def _apply(self, scheduled: SchedulerOutput) -> list[NewRequest]:
        """Bring the batch up to date, in the order that `SchedulerOutput` promises; returns the forks."""
        num_blocks_seen = self._batch.num_blocks_seen
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
        if self._batch.num_blocks_seen > num_blocks_seen:
            self._ops.touch_ahead(self._stores, self._batch.num_blocks_seen)
        return [request for request in scheduled.new_requests if request.fork_of is not None]

    def _take_picked(self, tokens: dict[str, int]) -> None:
        """Put the tokens that the core picked behind their beams."""
        batch = self._batch
        rows = np.fromiter((batch.row_of[name] for name in tokens), np.int64, len(tokens))
        batch.put(rows, batch.num_tokens[rows], np.fromiter(tokens.values(), np.int32, len(tokens)))
        for row, token in zip(rows.tolist(), tokens.values(), strict=True):
            self._sampler.advance(row, token)

    def _logits(self, index: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Logits of the tokens in `index`, `LOGITS_ROWS` at a time; each is valid until the next."""
        size = self._step.size
        for begin in range(0, len(index), LOGITS_ROWS):
            part = slice(begin, min(begin + LOGITS_ROWS, len(index)))
            count = part.stop - part.start
            self._inputs.logits_index[:count] = index[part]
            logits = self._head.run(StepSize(size.num_tokens, size.num_sequences, count))
            assert logits is not None
            yield part, logits

    def _again(self, index: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """The logits of `index[places]` (None: all) once more, of at most `LOGITS_ROWS` tokens of this step."""
        [(_, logits)] = self._logits(index)
        return logits if places is None else logits[places]

    def _compute(self, samples: Samples, output: StepOutput, num_steps: int) -> None:
        """Compute what is laid out, and sample; then go on for as many steps as are wanted.

        A run ends early with a token that may be a sequence's last.
        """
        ending = self._batch.ending(samples.rows) if num_steps > 1 else frozenset()
        if samples.drafts is None and 0 < len(samples.rows) <= LOGITS_ROWS and self._sampler.samples_as_is:
            self._decode(samples, output, num_steps, ending)
            return
        while True:
            self._body.run(self._step.size)
            self._sample(samples, output)
            self._batch.num_computed_tokens[self._step.rows] = self._step.computed
            if output.num_decode_steps == num_steps or self._sampler.failures:
                return
            if any(tokens[-1] in ending for tokens in output.sampled_token_ids.values()):
                return
            self._step.go_on()
            samples = self._step.samples([])
            output.num_decode_steps += 1

    def _decode(self, samples: Samples, output: StepOutput, num_steps: int, ending: frozenset[int]) -> None:
        """Compute and sample each sequence's tokens in one go."""
        count = len(samples.rows)
        self._inputs.logits_index[:count] = samples.index
        self._batch.sampling(samples.rows, samples.positions)
        size = StepSize(self._step.size.num_tokens, self._step.size.num_sequences, count)
        steps = self._decoding.run(self._step.layout, size, num_steps, ending)
        output.sampled_token_ids = {name: tokens for name, *tokens in zip(samples.names, *steps, strict=True)}
        output.num_decode_steps = len(steps)

    def _sample(self, samples: Samples, output: StepOutput) -> None:
        """Sample each sequence's token of logits that others may look at, or change."""
        ended: set[int] = set()
        for part, logits in self._logits(samples.index):
            if samples.drafts is not None:
                self._sample_drafted(samples, part, logits, ended, output)
                continue
            rows, positions = samples.rows[part], samples.positions[part]
            again = partial(self._again, samples.index[part])
            tokens, entries = self._sampler.sample(logits, rows, positions, again)
            self._take(samples.names[part], rows, positions, tokens, entries, output)

    def _take(
        self,
        names: Sequence[str],
        rows: np.ndarray,
        positions: np.ndarray,
        tokens: np.ndarray,
        entries: Sequence[TokenLogprobs | None],
        output: StepOutput,
    ) -> None:
        """Put sampled tokens behind their sequences, and into the output."""
        self._batch.put(rows, positions, tokens)
        sampled = output.sampled_token_ids
        for name, token in zip(names, tokens.tolist(), strict=True):
            sampled.setdefault(name, []).append(token)
        for name, entry in zip(names, entries, strict=bool(entries)):
            if entry is not None:
                output.logprobs.setdefault(name, []).append(entry)

    def _sample_drafted(
        self, samples: Samples, part: slice, logits: np.ndarray, ended: set[int], output: StepOutput
    ) -> None:
        """Sample each sequence's tokens up to the first that its draft has not guessed.

        All at once, but of sequences whose logits depend on their tokens one at a time.

        Args:
            ended: batch rows of which this has sampled all; grows.
        """
        rows, drafts = samples.rows, samples.drafts
        assert drafts is not None
        followed = self._sampler.followed_rows
        left: Sequence[int] = range(part.start, part.stop)
        while taken := _first_or_free(left, rows, followed, ended) if followed else list(left):
            chosen = np.array(taken)
            places = chosen - part.start if len(taken) < len(logits) else None
            tokens, entries = self._sampler.sample(
                logits if places is None else logits[places],
                rows[chosen],
                samples.positions[chosen],
                partial(self._again, samples.index[part], places),
            )
            kept = _kept(rows, drafts, taken, tokens, ended)
            self._take(
                [samples.names[taken[i]] for i in kept],
                rows[chosen[kept]],
                samples.positions[chosen[kept]],
                tokens[kept],
                [entries[i] for i in kept] if entries else [],
                output,
            )
            left = sorted({*left} - {*taken})

    def _find_candidates(self, output: StepOutput) -> None:
        """The likeliest next tokens of every beam whose tokens are all computed."""
        batch, step = self._batch, self._step
        rows = step.rows
        complete = np.flatnonzero((step.computed == batch.num_tokens[rows]) & (batch.num_candidates[rows] > 0))
        index, rows = (step.first_tokens + step.counts - 1)[complete], rows[complete]
        names = [step.names[i] for i in complete]
        for part, logits in self._logits(index):
            found = self._sampler.candidates(logits, rows[part], partial(self._again, index[part]))
            output.candidates.update(zip(names[part], found, strict=True))

    def _note_failures(self, forks: list[NewRequest], output: StepOutput) -> None:
        """Tell of sequences that a logits processor has failed on, be it before or in this step."""
        failures, row_of = self._sampler.failures, self._batch.row_of
        names = [*self._step.names, *(fork.sequence_id for fork in forks)]
        output.errors = {name: failures[row_of[name]] for name in names if row_of[name] in failures}

    def _prompt_logprobs(self, output: StepOutput) -> None:
        """The logits of prompt token p - 1 tell the logprob of prompt token p."""
        batch, step = self._batch, self._step
        for i, row in enumerate(step.rows.tolist()):
            if row not in batch.wanting_prompt_logprobs:
                continue
            before = int(step.starts[i])
            first = max(before + 1, int(batch.num_prompt_logprobs_done[row]), 1)
            last = min(int(step.computed[i]), int(batch.num_prompt_tokens[row]) - 1)
            positions = np.arange(first, last + 1)
            tokens = batch.token_ids[row, first : last + 1]
            counts = np.full(len(positions), batch.num_prompt_logprobs[row])
            entries: list[TokenLogprobs] = []
            for part, logits in self._logits(step.first_tokens[i] + positions - 1 - before):
                entries += self._sampler.logprobs(logits, np.arange(len(logits)), tokens[part], counts[part])
            if entries:
                output.prompt_logprobs[step.names[i]] = (first, entries)


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


def _kept(rows: np.ndarray, drafts: np.ndarray, taken: list[int], tokens: np.ndarray, ended: set[int]) -> list[int]:
    """Which of the tokens sampled at `taken` count; adds to `ended` the rows whose drafts end, or are wrong."""
    kept = []
    for i, (place, token) in enumerate(zip(taken, tokens.tolist(), strict=True)):
        row = int(rows[place])
        if row not in ended:
            kept.append(i)
            if token != drafts[place]:
                ended.add(row)
    return kept
