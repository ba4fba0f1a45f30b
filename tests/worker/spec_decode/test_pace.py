"""How many drafts are asked for: as many as pay, none that do not."""

from __future__ import annotations

import random

import pytest

from interleaf.worker.spec_decode.pace import LONGEST_PAUSE, Pace, StepTimes


def measured(cost: float, tokens: range) -> StepTimes:
    """Of steps of such sizes whose time is 1 and `cost` for each token."""
    times, rng = StepTimes(), random.Random(0)
    for _ in range(200):
        count = rng.choice(tokens)
        times.note(count, (1.0 + cost * count) * rng.uniform(0.97, 1.03))
    return times


def asked(pace: Pace, accepted: float, steps: int, num_sequences: int = 1, cost: float = 0.03) -> list[int]:
    """What is asked for while such a share of each draft is right."""
    counts, times = [], measured(cost, range(num_sequences, 9 * num_sequences))
    for _ in range(steps):
        counts.append(pace.num_drafts(16, num_sequences, times))
        if counts[-1]:
            pace.learn(counts[-1], int(counts[-1] * accepted))
    return counts


def test_right_drafts_become_longer_and_wrong_ones_rare() -> None:
    pace = Pace()
    easy = asked(pace, 1.0, 20)
    assert easy[-1] >= 8 and easy[-1] >= easy[0]
    hard = asked(pace, 0.0, 400)
    assert hard[-1] <= 1 and sum(hard[100:]) <= 2 + 300 / LONGEST_PAUSE
    assert asked(pace, 1.0, 200)[-1] >= 8, "a text that becomes easy is noticed"


def test_where_each_token_costs_a_step_none_is_asked_for() -> None:
    pace = Pace()
    assert set(asked(pace, 1.0, 50, num_sequences=16, cost=5.0)) == {0}
    assert asked(pace, 1.0, 50, num_sequences=16, cost=0.001)[-1] == 16


@pytest.mark.parametrize("cost", [0.0, 0.01, 0.1, 1.0])
def test_times_are_those_of_the_steps(cost: float) -> None:
    times = measured(cost, range(4, 40))
    for few, many in ((4, 8), (8, 32), (16, 40)):
        assert times.ratio(many, few) == pytest.approx((1 + cost * many) / (1 + cost * few), rel=0.15)
    times = StepTimes()
    assert 1.0 < times.ratio(8, 1) < 1.5, "before anything is measured drafts are tried"
    times.note(1, 0.01)
    assert 1.0 < times.ratio(8, 1) < 1.5
    times.note(5000, 9.0)
    assert 1.0 < times.ratio(8, 1) < 1.5, "prompts tell nothing"
