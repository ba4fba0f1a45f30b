"""How many drafts are asked for: as many as pay, none that do not."""

from __future__ import annotations

from interleaf.worker.spec_decode.pace import LONGEST_PAUSE, Pace, step_time


def asked(pace: Pace, accepted: float, steps: int, num_sequences: int = 1) -> list[int]:
    """What is asked for while such a share of each draft is right."""
    counts = []
    for _ in range(steps):
        counts.append(pace.num_drafts(16, num_sequences))
        if counts[-1]:
            pace.learn(counts[-1], int(counts[-1] * accepted))
    return counts


def test_right_drafts_become_longer_and_wrong_ones_rare() -> None:
    pace = Pace()
    easy = asked(pace, 1.0, 20)
    assert easy[-1] >= 4 and easy[-1] >= easy[0]
    hard = asked(pace, 0.0, 400)
    assert hard[-1] <= 1 and sum(hard[100:]) <= 2 + 300 / LONGEST_PAUSE
    assert asked(pace, 1.0, 200)[-1] >= 4, "a text that becomes easy is noticed"


def test_a_full_batch_asks_for_none() -> None:
    assert set(asked(Pace(), 1.0, 50, num_sequences=64)) == {0}


def test_what_is_asked_for_pays() -> None:
    """Expected tokens a second must rise, by the cost model, for every batch and share of right drafts."""
    for num_sequences in range(1, 40):
        for right in (1, 3, 6, 9):
            pace = Pace()
            for _ in range(60):
                pace.learn(1, 1) if _ % 10 < right else pace.learn(1, 0)
            count = pace.num_drafts(16, num_sequences)
            if count > 1:
                share = right / 10 + 0.25
                expected = sum(share**i for i in range(count + 1))
                assert expected * step_time(num_sequences) > step_time(num_sequences * (1 + count))
