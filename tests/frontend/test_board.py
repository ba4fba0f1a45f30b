"""The board that front ends share: sums over rows, and whose turn it is."""

from __future__ import annotations

import os
import random

import pytest

from interleaf.errors import OverloadedError
from interleaf.frontend.admission import Admission
from interleaf.frontend.board import Board, Seat, Tally
from interleaf.messages import EngineRequest
from interleaf.observe import Histogram, RequestStatistics
from interleaf.outputs import RequestMetrics
from interleaf.params import SamplingParams


@pytest.fixture
def boards() -> tuple[Board, Board]:
    """The same one, as two processes have it."""
    descriptor = Board.shared_file(3)
    one, two = Board(3, descriptor), Board(3, os.dup(descriptor))
    os.close(descriptor)
    return one, two


def test_what_is_written_in_one_row_is_read_by_all(boards: tuple[Board, Board]) -> None:
    one, two = Seat(boards[0], 0), Seat(boards[1], 2)
    one.add(Tally.IN_FLIGHT, 3)
    two.add(Tally.IN_FLIGHT, 4)
    two.add(Tally.SEQUENCES, 1)
    assert one.total(Tally.IN_FLIGHT) == two.total(Tally.IN_FLIGHT) == 7
    boards[0].clear(2)
    assert two.total(Tally.IN_FLIGHT) == 3 and one.total(Tally.SEQUENCES) == 0


def test_statistics_of_all_are_those_of_one_that_saw_everything(boards: tuple[Board, Board]) -> None:
    rng = random.Random(1)
    seats = [Seat(boards[0], 0), Seat(boards[1], 1), Seat(boards[1], 2)]
    alone = RequestStatistics()
    for _ in range(200):
        arrival, wait = rng.randrange(1000), rng.choice([0.25, 0.5, 4, 32])
        for statistics in (rng.choice(seats).statistics, alone):
            times = RequestMetrics(arrival_time=arrival, scheduled_time=arrival + wait, finished_time=arrival + 64)
            statistics.note_arrival(arrival)
            statistics.note_tokens([(times, 3)], arrival + 2 * wait)
            statistics.note_end(times, "stop", num_prompt_tokens=arrival, generated=[3], max_tokens=None)
    seats[0].statistics.note_abort()
    alone.note_abort()
    boards[0].clear(1)
    for seat in seats:
        assert seat.total_statistics().snapshot({}) == alone.snapshot({})
    assert alone.num_generation_tokens == 600 and alone.finished == {"stop": 200, "length": 0, "abort": 1, "error": 0}
    [histogram] = [one for one in alone.snapshot({}) if one.name == "vllm:time_to_first_token_seconds"]
    assert isinstance(histogram, Histogram) and histogram.count == 200


def test_one_front_end_at_a_time_tries_its_suspects() -> None:
    board = Board(3)
    seats = [Seat(board, row) for row in range(3)]
    assert all(seat.may_send for seat in seats)
    seats[2].set(Tally.SUSPECTS, 2)
    assert [seat.may_send for seat in seats] == [False, False, True]
    seats[1].set(Tally.SUSPECTS, 1)
    assert [seat.may_send for seat in seats] == [False, True, False]
    board.clear(1)
    seats[2].set(Tally.SUSPECTS, 0)
    assert all(seat.may_send for seat in seats)


def test_limits_hold_for_all_front_ends_together() -> None:
    board = Board(2)
    one, two = (Admission(2, None, Seat(board, row)) for row in range(2))
    request = EngineRequest("", [1, 2, 3], SamplingParams(), [])
    for admission in (one, two, one):
        admission.check(request, 1, 0)
        admission.add(request)
    for admission in (one, two):
        with pytest.raises(OverloadedError):
            admission.check(request, 1, 0)
    two.remove(request)
    one.check(request, 1, 0)
