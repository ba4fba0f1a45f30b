"""Which requests a new engine is given, in what order, and which of them is to blame if it dies again.

The engine notes what each step computes (`interleaf.engine.step_record`). A request that was being
computed when the engine died, and again at the next death before it had got any further, is a
*suspect*. Suspects are sent one by one: the first alone, each of the others when the one before it
has got further than at the death, and so is trusted again; whatever is no suspect waits meanwhile.
Guilty is only who was being computed alone when the engine died, twice in a row. If several were,
the next engine starts with the one that saw the most deaths. So nobody is ended for what another did.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

CRASHES_TO_SUSPECT = 2
MAX_CRASHES = 10
"""A request that was being computed at this many deaths stays a suspect to its end, whatever progress it makes."""


@dataclass(slots=True)
class _Standing:
    """What is known of one unfinished request.

    Fields:
        num_crashes: deaths in a row at which it was being computed, without progress between.
        num_crashes_ever: without that condition.
        distance: tokens that it must bring to have got further than at the last death.
    """

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
        self._unsent: dict[str, None] = {}
        """Requests that the engine that runs now was not given, in order."""
        self._num_suspects = 0

    def add(self, request_id: str) -> None:
        """A new request, which `next_to_send` will give out."""
        self._standings[request_id] = _Standing()
        self._unsent[request_id] = None

    def remove(self, request_id: str) -> None:
        """A request has ended."""
        standing = self._standings.pop(request_id, None)
        self._unsent.pop(request_id, None)
        if standing is not None and standing.suspect:
            self._num_suspects -= 1

    def was_sent(self, request_id: str) -> bool:
        """Whether the engine that runs now knows the request."""
        return request_id in self._standings and request_id not in self._unsent

    @property
    def num_suspects(self) -> int:
        """Requests that may be to blame for the last deaths."""
        return self._num_suspects

    @property
    def holds_back(self) -> bool:
        """Whether suspects are being tried, so that the end or the progress of one lets others be sent."""
        return self._num_suspects > 0

    def next_to_send(self) -> list[str]:
        """Requests to send now; they count as sent."""
        if not self._num_suspects:
            chosen = list(self._unsent)
        elif any(standing.suspect and name not in self._unsent for name, standing in self._standings.items()):
            chosen = []
        else:
            chosen = [max(self._standings, key=lambda name: self._standings[name].num_crashes)]
        for request_id in chosen:
            del self._unsent[request_id]
        return chosen

    def progressed(self, request_id: str, num_tokens: int) -> None:
        """A request has brought tokens."""
        standing = self._standings.get(request_id)
        if standing is None or not standing.num_crashes:
            return
        standing.distance -= num_tokens
        if standing.distance <= 0 and standing.num_crashes_ever < MAX_CRASHES:
            self._num_suspects -= standing.suspect
            standing.num_crashes = 0

    def engine_died(self, computed: Iterable[str], num_lost_steps: int, in_company: bool = False) -> str | None:
        """Nothing counts as sent any more.

        Args:
            computed: requests in the engine's last step.
            num_lost_steps: steps up to that one whose results never came.
            in_company: requests of other front ends were in it, too.

        Returns:
            the guilty one, to be ended with an error and removed by the caller.
        """
        charged = [request_id for request_id in computed if self.was_sent(request_id)]
        for request_id in charged:
            standing = self._standings[request_id]
            standing.num_crashes += 1
            standing.num_crashes_ever += 1
            standing.distance = max(1, num_lost_steps)
            self._num_suspects += standing.num_crashes == CRASHES_TO_SUSPECT
        self._unsent = dict.fromkeys(self._standings)
        alone = not in_company and len(charged) == 1 and self._standings[charged[0]].suspect
        return charged[0] if alone else None
