"""Changes to logits before sampling, one file each.

A processor holds what it needs by batch row. `active` lists are built anew in each step from the processors that hold
any row, so that a feature nobody asked for costs nothing.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from interleaf.messages import NewRequest


class LogitsProcessor(Protocol):
    """What the sampler calls. A row is added once, told of each token sampled for it, and removed once."""

    @property
    def holds_rows(self) -> bool:
        """Whether there is anything to do."""

    def add(self, row: int, request: NewRequest) -> None:
        """A sequence takes `row`; remember what its parameters ask for, if anything."""

    def remove(self, row: int) -> None:
        """The sequence in `row` is gone."""

    def append(self, row: int, token: int) -> None:
        """`token` was sampled for `row`."""

    def apply(self, logits: np.ndarray, rows: list[int]) -> None:
        """Change float32 logits [L, V] in place; `rows[i]` is the batch row of logits[i]."""
