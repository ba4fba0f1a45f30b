"""Numbers that several front ends of one engine share: each writes its own row, everybody reads them all.

The rows lie in a mapped file, so that nobody has to be asked: limits hold for all front ends together,
any of them can tell the sums, and what a front end counted is there after its death. Aligned numbers of
eight bytes are written and read whole; nothing else is asked of them.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from enum import IntEnum

from interleaf.observe import Cells, RequestStatistics

BYTES_PER_CELL = 8


class Tally(IntEnum):
    """What of a front end's row is as it is now, and is gone with it."""

    IN_FLIGHT = 0
    """HTTP requests, and work in the background."""
    SEQUENCES = 1
    """That it has given to the engine, or would."""
    QUEUED_TOKENS = 2
    """Of prompts that have brought nothing yet."""
    SUSPECTS = 3
    """Requests that may be to blame for the deaths of engines."""


ROW_CELLS = len(Tally) + RequestStatistics.NUM_CELLS


class Board:
    """The rows of all front ends.

    Args:
        num_rows: front ends.
        descriptor: of a file from `shared_file`; -1 shares them with nobody.
    """

    def __init__(self, num_rows: int, descriptor: int = -1) -> None:
        memory = memoryview(mmap.mmap(descriptor, _size(num_rows))).cast("d")
        self.rows: list[Cells] = [
            memory[begin : begin + ROW_CELLS] for begin in range(0, num_rows * ROW_CELLS, ROW_CELLS)
        ]

    @staticmethod
    def shared_file(num_rows: int) -> int:
        """A descriptor, for other processes to inherit, of a file without a name."""
        with tempfile.TemporaryFile(prefix="interleaf-") as file:
            os.ftruncate(file.fileno(), _size(num_rows))
            return os.dup(file.fileno())

    def clear(self, row: int) -> None:
        """Its front end is gone, and what it had in hand with it; what it has counted stays."""
        for tally in Tally:
            self.rows[row][tally] = 0.0


def _size(num_rows: int) -> int:
    return num_rows * ROW_CELLS * BYTES_PER_CELL


class Seat:
    """One front end's place at the board.

    Args:
        board: None is one of its own, for an engine's only front end.
        row: the one to write.

    Fields:
        statistics: of this front end's requests.
    """

    def __init__(self, board: Board | None = None, row: int = 0) -> None:
        self._rows = Board(1).rows if board is None else board.rows
        self.row = row
        self._own = self._rows[row]
        self.statistics = RequestStatistics(self._own[len(Tally) :])

    def add(self, tally: Tally, count: int) -> None:
        """Change one of this front end's own numbers."""
        self._own[tally] += count

    def set(self, tally: Tally, value: int) -> None:
        self._own[tally] = value

    def total(self, tally: Tally) -> int:
        """The sum over all front ends."""
        return int(sum(row[tally] for row in self._rows))

    @property
    def may_send(self) -> bool:
        """Whether this front end may give requests to the engine.

        While there are suspects, only the first front end that has any may: one is tried at a time,
        and nothing else runs beside it.
        """
        return next(self._with_suspects(), self.row) == self.row

    def total_statistics(self) -> RequestStatistics:
        """Of the requests of all front ends."""
        return RequestStatistics.total([row[len(Tally) :] for row in self._rows])

    def _with_suspects(self) -> Iterator[int]:
        return (number for number, row in enumerate(self._rows) if row[Tally.SUSPECTS])
