"""Hidden states in, pooled ones out: the last token's, or the mean of all tokens'.

A mean is gathered over the steps that a prompt takes: in float64 and token by token in their order, so that it has the
same bits however the prompt was cut, and whatever was computed beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from interleaf.messages import NewRequest
from interleaf.ops import Graph, ModelInput, StepSize
from interleaf.params import Pooling
from interleaf.worker.batch import Batch
from interleaf.worker.step import Step


class Pooler:
    """Follows the sequences whose hidden states are pooled.

    Args:
        record: makes the pass that gives hidden states of the tokens in `inputs.logits_index`, float32 [L, hidden];
            called when the first of these sequences comes, so that it costs nothing where there are none.
    """

    def __init__(self, batch: Batch, inputs: ModelInput, record: Callable[[], Graph]) -> None:
        self._batch = batch
        self._inputs = inputs
        self._record = record
        self._graph: Graph | None = None
        self._poolings: dict[int, Pooling] = {}
        self._sums: dict[int, np.ndarray] = {}
        """By batch row: float64 [hidden], of the tokens that are pooled and computed."""

    def add(self, row: int, request: NewRequest) -> None:
        """A sequence has come into the batch, from its beginning or (with "last") behind a cached prefix."""
        if request.pooling is not None:
            assert request.pooling == "last" or not request.num_computed_tokens, "a mean is of all tokens"
            self._poolings[row] = request.pooling

    def remove(self, row: int) -> None:
        """A sequence has left the batch; if it was preempted, it will come again."""
        self._poolings.pop(row, None)
        self._sums.pop(row, None)

    def pool(self, step: Step) -> dict[str, list[float]]:
        """Pool what a step has computed; the pooled states of the sequences that it completes."""
        if not self._poolings:
            return {}
        rows, starts, counts = step.rows, step.first_tokens, step.counts
        places = [i for i, row in enumerate(rows.tolist()) if row in self._poolings]
        complete = step.computed == self._batch.num_tokens[rows]
        tokens: list[np.ndarray] = []
        owners: list[int] = []
        for i in places:
            row, end = int(rows[i]), int(starts[i] + counts[i])
            if self._poolings[row] == "last":
                wanted = np.arange(end - 1, end) if complete[i] else np.arange(0)
            else:
                wanted = np.arange(starts[i], end)
            tokens.append(wanted)
            owners += [row] * len(wanted)
        if owners:
            self._add_up(np.concatenate(tokens), owners, step.size)
        return {step.names[i]: self._pooled(int(rows[i])) for i in places if complete[i]}

    def _add_up(self, tokens: np.ndarray, owners: Sequence[int], size: StepSize) -> None:
        """Add the hidden state of each of these tokens to its owner's sum."""
        self._graph = self._graph or self._record()
        room = len(self._inputs.logits_index)
        for begin in range(0, len(tokens), room):
            part = tokens[begin : begin + room]
            self._inputs.logits_index[: len(part)] = part
            hidden = self._graph.run(StepSize(size.num_tokens, size.num_sequences, len(part)))
            assert hidden is not None
            for row, vector in zip(owners[begin : begin + room], hidden, strict=True):
                if row in self._sums:
                    self._sums[row] += vector
                else:
                    self._sums[row] = vector.astype(np.float64)

    def _pooled(self, row: int) -> list[float]:
        count = 1 if self._poolings[row] == "last" else int(self._batch.num_tokens[row])
        values: list[float] = (self._sums[row] / count).astype(np.float32).tolist()
        return values
