"""The interface of what guesses. The scheduler and the sampler know drafts only, not where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from interleaf.messages import NewRequest
from interleaf.ops import StepSize
from interleaf.worker.batch import Batch


@dataclass(frozen=True, slots=True)
class StepView:
    """What is known when a step has been computed and sampled; a proposer must change nothing of it.

    A proposer that needs more of the model (its hidden states, say) gets it by a field here.

    Fields:
        batch: tokens by row, the sampled ones included (`batch.num_tokens` of them count).
        rows: int64 [S]: batch rows of the sequences that were computed.
        starts: int32 [S]: how many tokens of each were computed before this step.
        block_copies: (from, to) of the step, as in `SchedulerOutput`.
        size: of the step.
        seconds: that it took until now.
    """

    batch: Batch
    rows: np.ndarray
    starts: np.ndarray
    block_copies: Sequence[tuple[int, int]]
    size: StepSize
    seconds: float


class Proposer(Protocol):
    """Follows the sequences of the batch by row, and guesses how they go on."""

    def add(self, row: int, request: NewRequest) -> None:
        """A sequence takes a row, with the tokens that it has."""

    def remove(self, row: int) -> None:
        """A row's sequence has ended, or was preempted and will come again."""

    def observe(self, step: StepView) -> None:
        """A step was computed; called for each, whether or not drafts are wanted."""

    def propose(self, batch: Batch, wanted: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Drafts for each (batch row, most drafts) in `wanted`: what may follow its tokens so far, perhaps nothing."""
