"""Who is to blame for a crash, against simulated engines that die of certain requests."""

from __future__ import annotations

import random

import pytest

from interleaf.frontend.recovery import MAX_CRASHES, Recovery


class Engines:
    """Engines one after the other; each computes all that it was given, a token a step.

    Args:
        deadly: request -> how many tokens it brings before it kills every engine.
        lag: steps whose news are lost when the engine dies.
        budget: requests that start in a step.
    """

    def __init__(self, lengths: dict[str, int], deadly: dict[str, int], lag: int = 0, budget: int = 1000) -> None:
        self.recovery = Recovery()
        self.lengths, self.deadly, self.lag, self.budget = lengths, deadly, lag, budget
        self.tokens = dict.fromkeys(lengths, 0)
        self.given_up: list[str] = []
        self.num_crashes = 0
        for name in lengths:
            self.recovery.add(name)

    def run(self) -> None:
        while len(self.given_up) + sum(self.tokens[name] == self.lengths[name] for name in self.lengths) < len(
            self.lengths
        ):
            self._run_one_engine()

    def _run_one_engine(self) -> None:
        """Up to its death, or the end of all requests."""
        waiting, running = self.recovery.next_to_send(), []
        assert waiting, "something is always sent to a new engine"
        computed = dict(self.tokens)
        in_flight: list[list[str]] = []
        while waiting or running:
            running += waiting[: self.budget]
            waiting = waiting[self.budget :]
            if any(computed[name] == self.deadly.get(name) for name in running):
                self.num_crashes += 1
                guilty = self.recovery.engine_died(set(running), len(in_flight) + 1)
                if guilty is not None:
                    self.given_up.append(guilty)
                    self.recovery.remove(guilty)
                return
            for name in running:
                computed[name] += 1
            in_flight.append(list(running))
            running = [name for name in running if computed[name] < self.lengths[name]]
            if len(in_flight) > self.lag or not running:
                self._deliver(in_flight.pop(0))
                while not running and in_flight:
                    self._deliver(in_flight.pop(0))
            waiting += self.recovery.next_to_send()

    def _deliver(self, names: list[str]) -> None:
        for name in names:
            self.tokens[name] += 1
            self.recovery.progressed(name, 1)
            if self.tokens[name] == self.lengths[name]:
                self.recovery.remove(name)


def lengths(count: int, tokens: int = 20) -> dict[str, int]:
    return {f"r{number}": tokens for number in range(count)}


def test_alone_it_is_given_up_at_the_second_crash() -> None:
    engines = Engines(lengths(1), {"r0": 7})
    engines.run()
    assert (engines.given_up, engines.num_crashes, engines.tokens["r0"]) == (["r0"], 2, 7)


def test_in_company_it_is_found_at_the_third() -> None:
    engines = Engines(lengths(10), {"r9": 3}, budget=1)
    engines.run()
    assert (engines.given_up, engines.num_crashes) == (["r9"], 3)


def test_among_a_hundred_it_is_found_at_the_fourth() -> None:
    engines = Engines(lengths(100), {"r57": 4})
    engines.run()
    assert (engines.given_up, engines.num_crashes) == (["r57"], 4)


@pytest.mark.parametrize("seed", range(100))
def test_all_the_guilty_are_given_up_and_nobody_else(seed: int) -> None:
    rng = random.Random(seed)
    names = lengths(rng.randint(1, 30), rng.randint(5, 40))
    deadly = {name: rng.randint(0, 4) for name in names if rng.random() < 0.15}
    engines = Engines(names, deadly, lag=rng.randint(0, 3), budget=rng.randint(1, 30))
    engines.run()
    assert sorted(engines.given_up) == sorted(deadly)
    assert engines.num_crashes <= 5 * max(len(deadly), 1)


def test_crashes_from_outside_are_nobodys_fault_while_requests_get_on() -> None:
    recovery = Recovery()
    recovery.add("a")
    for _ in range(MAX_CRASHES):
        assert recovery.next_to_send() == ["a"]
        recovery.progressed("a", 3)
        assert recovery.engine_died({"a"}, 3) is None
    recovery.next_to_send()
    assert recovery.engine_died({"a"}, 3) == "a", "but not for ever"


def test_one_that_has_seen_many_crashes_runs_alone_to_its_end() -> None:
    recovery = Recovery()
    recovery.add("a")
    recovery.add("b")
    for _ in range(MAX_CRASHES):
        recovery.next_to_send()
        recovery.engine_died({"a", "b"}, 1)
    assert recovery.next_to_send() == ["a"]
    recovery.progressed("a", 1000)
    assert recovery.next_to_send() == []
    recovery.remove("a")
    assert recovery.next_to_send() == ["b"]


def test_those_that_only_waited_are_innocent() -> None:
    recovery = Recovery()
    for name in ("a", "b", "c"):
        recovery.add(name)
    recovery.next_to_send()
    recovery.engine_died({"a", "b"}, 1)
    recovery.next_to_send()
    recovery.engine_died({"a", "b"}, 1)
    assert recovery.next_to_send() == ["a"] and recovery.next_to_send() == []
    recovery.add("d")
    assert recovery.next_to_send() == [], "nobody else is put at risk, nor makes the finding uncertain"
    recovery.progressed("a", 1)
    assert recovery.next_to_send() == ["b"]
    recovery.remove("b")
    assert recovery.next_to_send() == ["c", "d"]
    assert recovery.was_sent("c") and not recovery.was_sent("b") and not recovery.holds_back


def test_what_is_unknown_or_was_not_sent_is_not_charged() -> None:
    recovery = Recovery()
    recovery.add("a")
    for _ in range(3):
        assert recovery.engine_died({"a", "other"}, 1) is None
    recovery.progressed("other", 1)
    recovery.remove("other")
    assert recovery.next_to_send() == ["a"]
