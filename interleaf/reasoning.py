"""Where a model's reasoning begins and ends, in tokens: for whatever holds for the answer only, or for the reasoning.

A sequence that reasons is in one of three phases. What phase it is in depends on its output tokens alone, so that
whoever follows it comes to the same result after a preemption, a fork or a replay.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import msgspec


class ReasoningMarkers(msgspec.Struct, array_like=True, omit_defaults=True):
    """How a model marks its reasoning.

    Fields:
        start_token_ids: begin it; an output that does not begin with them has none.
        end_token_ids: end it; never empty.
        is_open: the prompt has begun it already.
    """

    start_token_ids: list[int]
    end_token_ids: list[int]
    is_open: bool = False


class Phase(IntEnum):
    """What a sequence is about to write."""

    UNDECIDED = 0
    """Its first tokens; they may begin reasoning."""
    REASONING = 1
    ANSWER = 2


class ReasoningTracker:
    """Follows the output of one sequence.

    Attributes:
        phase: behind all tokens so far.
        num_tokens: of the reasoning so far, without the markers.
        num_end_tokens: how much of the end marker the last tokens are.
    """

    def __init__(self, markers: ReasoningMarkers, output_token_ids: Iterable[int] = ()) -> None:
        self._start = markers.start_token_ids
        self._end = markers.end_token_ids
        self._recent: list[int] = []
        self.phase = Phase.REASONING if markers.is_open else Phase.UNDECIDED if self._start else Phase.ANSWER
        self.num_tokens = 0
        self.num_end_tokens = 0
        for token in output_token_ids:
            self.append(token)

    @property
    def is_over(self) -> bool:
        """Whether the next token is one of the answer."""
        return self.phase is Phase.ANSWER

    def append(self, token: int) -> None:
        """The sequence has grown by a token."""
        if self.phase is Phase.ANSWER:
            return
        self._recent.append(token)
        if self.phase is Phase.UNDECIDED:
            self._decide()
        else:
            self._advance()

    def _decide(self) -> None:
        count = len(self._recent)
        if self._recent != self._start[:count]:
            self.phase = Phase.ANSWER
        elif count == len(self._start):
            self.phase = Phase.REASONING
            self._recent.clear()

    def _advance(self) -> None:
        self.num_tokens += 1
        del self._recent[: -len(self._end)]
        longest = len(self._recent)
        self.num_end_tokens = next(
            (count for count in range(longest, 0, -1) if self._recent[-count:] == self._end[:count]), 0
        )
        if self.num_end_tokens == len(self._end):
            self.phase = Phase.ANSWER
            self.num_tokens -= len(self._end)
