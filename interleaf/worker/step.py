"""The sequences of one step after the other, laid out in arrays that stay where they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from interleaf.messages import NewRequest, SchedulerOutput
from interleaf.ops import BatchRows, ModelInput, Ops, StepRows, StepSize
from interleaf.worker.batch import Batch
from interleaf.worker.shared_prefixes import SharedPrefixes


@dataclass(slots=True)
class Samples:
    """What is sampled in a step, sequence by sequence: L tokens, of which those behind a wrong draft won't count.

    Fields:
        names: whose token it is.
        rows: int32: its batch row.
        index: int32: the token of T whose logits it is sampled from.
        positions: int32: its place in the sequence.
        drafts: int32: what it was guessed to be, -1 behind the last draft; None if there are no drafts in the step.
    """

    names: list[str]
    rows: np.ndarray
    index: np.ndarray
    positions: np.ndarray
    drafts: np.ndarray | None


def new_step_rows(max_sequences: int, max_samples: int, max_logits: int) -> StepRows:
    """Arrays for that many."""
    by_place = {
        name: np.zeros(max_sequences, np.int32) for name in ("rows", "starts", "counts", "num_drafts", "computed")
    }
    samples = ("sample_places", "sample_index", "sample_rows", "sample_positions", "sample_drafts")
    by_sample = {name: np.zeros(max_samples, np.int32) for name in samples}
    return StepRows(**by_place, **by_sample, tokens=np.zeros(max_logits, np.int32))


class Step:
    """The present step.

    As long as the same sequences run, only what changes is written: token counts and positions, which native code turns
    into inputs.

    Fields:
        names: of the sequences that are computed.
        size: tokens and sequences.
        layout: what writes the inputs, and takes in tokens.
    """

    def __init__(self, ops: Ops, batch: Batch, inputs: ModelInput, block_size: int) -> None:
        max_sequences = len(batch.num_tokens)
        # Each token may be a sequence's last or a draft, and each sequence a fork.
        self._arrays = new_step_rows(max_sequences, len(inputs.token_ids) + max_sequences, len(inputs.logits_index))
        self._batch = batch
        self._inputs = inputs
        known = BatchRows(batch.token_ids, batch.num_tokens, batch.num_computed_tokens, batch.samples)
        self.layout = ops.step_layout(known, self._arrays, inputs, block_size)
        # Tables of several groups of layers differ.
        self._prefixes = None if inputs.more_groups else SharedPrefixes(inputs, block_size)
        self._has_drafts = False
        self._num_samples = 0
        self.names: list[str] = []
        self.size = StepSize()

    def lay_out(self, scheduled: SchedulerOutput) -> None:
        """Write the step's inputs: every sequence's next tokens, one after the other."""
        arrays, batch = self._arrays, self._batch
        names = list(scheduled.num_scheduled_tokens)
        count = len(names)
        changed = bool(scheduled.new_requests or scheduled.removed_sequence_ids) or names != self.names
        if changed:
            self.names = names
            arrays.rows[:count] = [batch.row_of[name] for name in names]
        arrays.counts[:count] = np.fromiter(scheduled.num_scheduled_tokens.values(), np.int32, count)
        if scheduled.draft_token_ids or self._has_drafts:
            self._put_drafts(scheduled.draft_token_ids)
        self._write(count, changed)

    def go_on(self) -> None:
        """Write the inputs of a further step of the same sequences, of which each computes the token it has sampled."""
        self._write(self.size.num_sequences, changed=False)

    def _write(self, num_sequences: int, changed: bool) -> None:
        num_tokens, self._num_samples = self.layout.write(num_sequences)
        self.size = StepSize(num_tokens, num_sequences)
        if self._prefixes is not None:
            self._prefixes.note(self.rows, self.starts, self.counts, changed)

    def _put_drafts(self, drafts: dict[str, list[int]]) -> None:
        """Set each sequence's drafts behind its tokens."""
        batch, arrays = self._batch, self._arrays
        for name, tokens in drafts.items():
            row = batch.row_of[name]
            end = batch.num_tokens[row]
            batch.token_ids[row, end : end + len(tokens)] = tokens
        count = len(self.names)
        arrays.num_drafts[:] = 0
        arrays.num_drafts[:count] = [len(drafts.get(name, ())) for name in self.names]
        arrays.counts[:count] += arrays.num_drafts[:count]
        self._has_drafts = bool(drafts)

    def samples(self, forks: list[NewRequest]) -> Samples:
        """One token for every sequence whose tokens are all computed (and its forks), one behind each of its drafts."""
        arrays, count = self._arrays, self._num_samples
        names = self.names
        if count != len(names) or self._has_drafts:
            names = [names[place] for place in arrays.sample_places[:count].tolist()]
        if forks:
            self._add_forks(forks)
            names = names + [fork.sequence_id for fork in forks]
            count += len(forks)
        return Samples(
            names,
            arrays.sample_rows[:count],
            arrays.sample_index[:count],
            arrays.sample_positions[:count],
            arrays.sample_drafts[:count] if self._has_drafts else None,
        )

    def _add_forks(self, forks: list[NewRequest]) -> None:
        """A fork samples from the logits of its parent's last token, which has no drafts behind it in this step."""
        arrays, batch = self._arrays, self._batch
        part = slice(self._num_samples, self._num_samples + len(forks))
        parents = [self.names.index(fork.fork_of or "") for fork in forks]
        rows = np.array([batch.row_of[fork.sequence_id] for fork in forks])
        arrays.sample_rows[part] = rows
        arrays.sample_index[part] = self._inputs.query_start[1:][parents] - 1
        arrays.sample_positions[part] = batch.num_tokens[rows]
        arrays.sample_drafts[part] = -1

    @property
    def tokens(self) -> np.ndarray:
        """Int32 [max logits]: where tokens are to be left for `layout`."""
        return self._arrays.tokens

    @property
    def rows(self) -> np.ndarray:
        """Int32 [S]: batch rows."""
        return self._arrays.rows[: self.size.num_sequences]

    @property
    def starts(self) -> np.ndarray:
        """Int32 [S]: tokens of each sequence that were computed before."""
        return self._arrays.starts[: self.size.num_sequences]

    @property
    def counts(self) -> np.ndarray:
        """Int32 [S]: tokens that are computed, drafts included."""
        return self._arrays.counts[: self.size.num_sequences]

    @property
    def first_tokens(self) -> np.ndarray:
        """Int32 [S]: where each sequence begins in T."""
        return self._inputs.query_start[: self.size.num_sequences]

    @property
    def computed(self) -> np.ndarray:
        """Int32 [S]: tokens of each that are computed now, without drafts."""
        return self._arrays.computed[: self.size.num_sequences]
