"""All logits processors of an engine, the states of the sequences they hold, and faults in them.

A processor is called only where it holds a row, so that a feature nobody asked for costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from interleaf.config import EngineConfig
from interleaf.logits_processor import LogitsProcessor, SequenceStart
from interleaf.observe import get_logger
from interleaf.worker.logits.allowed_token_ids import AllowedTokenIds
from interleaf.worker.logits.bad_words import BadWords
from interleaf.worker.logits.logit_bias import LogitBias
from interleaf.worker.logits.min_tokens import MinTokens
from interleaf.worker.logits.penalties import Penalties
from interleaf.worker.logits.thinking_budget import ThinkingBudget

logger = get_logger(__name__)

BUILT_IN: tuple[type[LogitsProcessor[Any]], ...] = (
    AllowedTokenIds,
    BadWords,
    MinTokens,
    LogitBias,
    Penalties,
    ThinkingBudget,
)
"""In the order in which they are applied; custom ones follow."""


class _Link:
    """A processor, and by batch row the states of the sequences that it holds."""

    def __init__(self, processor: LogitsProcessor[Any], custom: bool) -> None:
        self.processor = processor
        self.custom = custom
        self.states: dict[int, Any] = {}

    @property
    def name(self) -> str:
        return type(self.processor).__name__


class LogitsChain:
    """Applies the processors one after the other.

    Args:
        custom: further processors, which are applied behind the built-in ones.

    Fields:
        failures: batch row -> why its sequence cannot go on; until the row is removed.
    """

    def __init__(self, config: EngineConfig, custom: Sequence[type[LogitsProcessor[Any]]] = ()) -> None:
        self.failures: dict[int, str] = {}
        self._links = [
            *(_Link(make(config), custom=False) for make in BUILT_IN),
            *(_Link(make(config), custom=True) for make in custom),
        ]

    @property
    def active(self) -> bool:
        """Whether any row is held."""
        for link in self._links:  # noqa: SIM110 - this is asked in each step, and a generator costs more than all of it.
            if link.states:
                return True
        return False

    @property
    def rows(self) -> set[int]:
        """All rows that are held."""
        return {row for link in self._links for row in link.states}

    def add(self, row: int, sequence: SequenceStart) -> None:
        """A sequence takes a row of the batch."""
        for link in self._links:
            try:
                state = link.processor.start(sequence)
            except Exception:
                return self._fail(link, row)
            if state is not None:
                link.states[row] = state
        return None

    def remove(self, row: int) -> None:
        """The sequence in a row is gone."""
        self.failures.pop(row, None)
        for link in self._links:
            link.states.pop(row, None)

    def advance(self, row: int, token: int) -> None:
        """A row's sequence has got one more token."""
        for link in self._links:
            if row not in link.states:
                continue
            try:
                state = link.processor.advance(link.states[row], token)
            except Exception:
                return self._fail(link, row)
            if state is None:
                del link.states[row]
            else:
                link.states[row] = state
        return None

    def apply(self, logits: np.ndarray, rows: Sequence[int], again: Callable[[], np.ndarray]) -> None:
        """Change logits in place; rows for which that fails are put into `failures`.

        Args:
            logits: float32 [L, V].
            rows: the batch row of each.
            again: computes the same logits once more, into the same memory or other: what a processor leaves behind
                when it fails halfway is worth nothing.
        """
        for link in self._links:
            held = [(i, link.states[row]) for i, row in enumerate(rows) if row in link.states]
            if not held:
                continue
            try:
                link.processor.apply(logits, held)
                if link.custom:
                    _check(logits[i] for i, _ in held)
            except Exception:
                # Not known yet whose fault it is: one row at a time, from the beginning.
                self._apply_singly(logits, rows, again)
                return

    def _apply_singly(self, logits: np.ndarray, rows: Sequence[int], again: Callable[[], np.ndarray]) -> None:
        fresh = again()
        if fresh is not logits:
            logits[:] = fresh
        for i, row in enumerate(rows):
            one = logits[i : i + 1]
            for link in self._links:
                if row not in link.states or row in self.failures:
                    continue
                try:
                    link.processor.apply(one, [(0, link.states[row])])
                    if link.custom:
                        _check(one)
                except Exception:
                    one[:] = 0.0
                    self._fail(link, row)

    def _fail(self, link: _Link, row: int) -> None:
        """Called while an exception is handled."""
        logger.exception("the logits processor %s failed; its sequence ends", link.name)
        self.failures[row] = f"The logits processor {link.name} failed on this request."
        for other in self._links:
            other.states.pop(row, None)


def _check(rows: Iterable[np.ndarray]) -> None:
    """A custom processor may have left nothing that can be sampled from."""
    if not all(np.isfinite(row.max()) for row in rows):
        raise ValueError("the logits are NaN, infinite, or all -inf")
