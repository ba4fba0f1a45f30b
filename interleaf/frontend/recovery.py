"""Which requests a new engine is given, in what order, and which of them is to blame if it dies again.

The engine notes what each step computes (`interleaf.engine.step_record`). A request that was being
computed when the engine died, and again at the next death before it had got any further, is a
*suspect*. One alone is guilty. Several are sent one by one, each when the one before it is trusted
again; the one that is on trial when the engine dies is guilty, and the others go on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

CRASHES_TO_SUSPECT = 2
MAX_CRASHES = 10
"""A request is given up after it was being computed at this many deaths, whatever progress it made between them."""


@dataclass(slots=True)
class _Standing:
    """What is known of one unfinished request.

    Fields:
        sent: whether the engine that runs now was given it.
        num_crashes: deaths in a row at which it was being computed, without progress between.
        num_crashes_ever: without that condition.
        distance: tokens that it must bring to have got further than at the last death.
    """

    sent: bool = False
    num_crashes: int = 0
    num_crashes_ever: int = 0
    distance: int = 0

    @property
    def suspect(self) -> bool:
        return self.num_crashes >= CRASHES_TO_SUSPECT


class Recovery:
    """Knows every unfinished request of a front end by its id, in order of arrival."""

    def __init__(self) -> None:
        self._standings: dict[str, _Standing] = {}
        self._num_suspects = 0

    def add(self, request_id: str) -> None:
        """A new request, which `next_to_send` will give out."""
        self._standings[request_id] = _Standing()

    def remove(self, request_id: str) -> None:
        """A request has ended."""
        standing = self._standings.pop(request_id, None)
        if standing is not None and standing.suspect:
            self._num_suspects -= 1

    def was_sent(self, request_id: str) -> bool:
        """Whether the engine that runs now knows the request."""
        standing = self._standings.get(request_id)
        return standing is not None and standing.sent

    @property
    def holds_back(self) -> bool:
        """Whether suspects are being tried, so that the end or the progress of one lets others be sent."""
        return self._num_suspects > 0

    def next_to_send(self) -> list[str]:
        """Requests to send now; they count as sent."""
        if not self._num_suspects:
            chosen = [request_id for request_id, standing in self._standings.items() if not standing.sent]
        elif self._on_trial() is not None:
            return []
        else:
            chosen = [next(request_id for request_id, standing in self._standings.items() if standing.suspect)]
        for request_id in chosen:
            self._standings[request_id].sent = True
        return chosen

    def progressed(self, request_id: str, num_tokens: int) -> None:
        """A request has brought tokens."""
        standing = self._standings.get(request_id)
        if standing is None or not standing.num_crashes:
            return
        standing.distance -= num_tokens
        if standing.distance <= 0:
            self._num_suspects -= standing.suspect
            standing.num_crashes = 0

    def engine_died(self, computed: Iterable[str], num_lost_steps: int) -> list[str]:
        """Nothing counts as sent any more.

        Args:
            computed: requests in the engine's last step.
            num_lost_steps: steps up to that one whose results never came.

        Returns:
            the guilty, to be ended with an error and removed by the caller.
        """
        on_trial = self._on_trial()
        guilty = []
        if on_trial is not None and on_trial in set(computed):
            guilty = [on_trial]
        else:
            for request_id in computed:
                self._charge(request_id, max(1, num_lost_steps))
            guilty = self._guilty()
        for standing in self._standings.values():
            standing.sent = False
        return guilty

    def _on_trial(self) -> str | None:
        if not self._num_suspects:
            return None
        return next((name for name, standing in self._standings.items() if standing.suspect and standing.sent), None)

    def _charge(self, request_id: str, distance: int) -> None:
        standing = self._standings.get(request_id)
        if standing is None or not standing.sent:
            return
        self._num_suspects += standing.num_crashes == CRASHES_TO_SUSPECT - 1
        standing.num_crashes += 1
        standing.num_crashes_ever += 1
        standing.distance = distance

    def _guilty(self) -> list[str]:
        suspects = [name for name, standing in self._standings.items() if standing.suspect]
        if len(suspects) == 1:
            return suspects
        return [name for name, standing in self._standings.items() if standing.num_crashes_ever >= MAX_CRASHES]
