"""Whether another request may queue, or the caller should rather be told to come again later."""

from __future__ import annotations

from interleaf.errors import OverloadedError
from interleaf.frontend.board import Seat, Tally
from interleaf.messages import EngineRequest

LONGEST_RETRY_SECONDS = 30.0
REQUESTS_A_SECOND = 4.0
"""A guess at how fast a queue shrinks, for `retry_after` only."""


class Admission:
    """Counts what is on its way to an engine.

    A sequence counts as queued if the engine's seats (`max_num_seqs`) are taken, or if the engine
    says that it waits. A prompt's tokens are queued until its request brings its first token.

    Args:
        max_num_reqs: most queued sequences; None is no limit.
        max_num_tokens: most queued prompt tokens; None is no limit. A request that finds nothing
            queued is taken in whatever its length.
        seat: where the counts are kept; limits hold for all front ends together.
    """

    def __init__(self, max_num_reqs: int | None, max_num_tokens: int | None, seat: Seat | None = None) -> None:
        self._max_num_reqs = max_num_reqs
        self._max_num_tokens = max_num_tokens
        self._seat = seat or Seat()

    def check(self, request: EngineRequest, num_seats: int, num_waiting: int) -> None:
        """
        Args:
            num_seats: sequences that the engine computes at once.
            num_waiting: sequences that wait inside of it.

        Raises:
            OverloadedError: a limit would be passed.
        """
        if self._max_num_reqs is None and self._max_num_tokens is None:
            return
        num_sequences, queued_tokens = self._seat.total(Tally.SEQUENCES), self._seat.total(Tally.QUEUED_TOKENS)
        queued = max(num_sequences - num_seats, num_waiting, 0)
        after = max(num_sequences - num_seats, num_waiting or -num_seats) + request.params.n
        if self._max_num_reqs is not None and after > self._max_num_reqs:
            raise OverloadedError(
                f"{queued} requests wait already, and {self._max_num_reqs} are the most that may: try again later.",
                _retry_after(queued),
            )
        num_tokens = queued_tokens + len(request.prompt_token_ids)
        if self._max_num_tokens is not None and queued_tokens and num_tokens > self._max_num_tokens:
            raise OverloadedError(
                f"Prompts of {queued_tokens} tokens wait already, and {self._max_num_tokens} are the most "
                f"that may: try again later.",
                _retry_after(queued),
            )

    def add(self, request: EngineRequest) -> None:
        """A request is taken in."""
        self._seat.add(Tally.SEQUENCES, request.params.n)
        self._seat.add(Tally.QUEUED_TOKENS, len(request.prompt_token_ids))

    def start(self, request: EngineRequest) -> None:
        """It has brought its first token, or has ended."""
        self._seat.add(Tally.QUEUED_TOKENS, -len(request.prompt_token_ids))

    def remove(self, request: EngineRequest) -> None:
        """It has ended."""
        self._seat.add(Tally.SEQUENCES, -request.params.n)


def _retry_after(num_queued: int) -> float:
    return min(max(1.0, num_queued / REQUESTS_A_SECOND), LONGEST_RETRY_SECONDS)
