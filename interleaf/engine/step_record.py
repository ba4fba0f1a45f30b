"""What the engine is computing right now, where it can be read after the engine has died.

A file of the engine's private directory, mapped into its memory: written before each step, it costs
no system call, and outlives the process whatever kills it.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec

from interleaf.messages import SchedulerStats

HEADER = struct.Struct("<qI")
"""Step number, and the length in bytes of the names that follow."""
STATS_HEADER = struct.Struct("<I")
MAX_STATS_BYTES = 1024
NAMES_BEGIN = HEADER.size + STATS_HEADER.size + MAX_STATS_BYTES
BYTES_PER_SEQUENCE = 64


class StepRecorder:
    """Writes the record.

    Args:
        path: of the file, which is made anew.
        max_num_seqs: how many names must fit; of longer ones the last are left out.
    """

    def __init__(self, path: Path, max_num_seqs: int) -> None:
        size = NAMES_BEGIN + BYTES_PER_SEQUENCE * max_num_seqs
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(descriptor, size)
            self._memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._room = size - NAMES_BEGIN

    def write(self, step: int, sequence_ids: Iterable[str]) -> None:
        """Note that a step begins, or that a request is taken in behind it."""
        names = "\n".join(sequence_ids).encode()[: self._room]
        self._memory[NAMES_BEGIN : NAMES_BEGIN + len(names)] = names
        HEADER.pack_into(self._memory, 0, step, len(names))

    def write_stats(self, stats: SchedulerStats) -> None:
        """Note what the counters have come to."""
        raw = msgspec.msgpack.encode(stats)
        begin = HEADER.size + STATS_HEADER.size
        self._memory[begin : begin + len(raw)] = raw
        STATS_HEADER.pack_into(self._memory, HEADER.size, len(raw))

    def close(self) -> None:
        self._memory.close()


def read_step_record(path: Path) -> tuple[int, set[str]]:
    """Number of the last step that was begun, and the ids of its requests; (-1, nothing) if none was."""
    try:
        raw = path.read_bytes()
    except OSError:
        return -1, set()
    if len(raw) < NAMES_BEGIN:
        return -1, set()
    step, length = HEADER.unpack_from(raw)
    names = raw[NAMES_BEGIN : NAMES_BEGIN + length].decode("utf-8", "replace")
    return step, {name.split(".")[0] for name in names.split("\n") if name}


def read_stats(path: Path) -> SchedulerStats | None:
    """What the counters had come to; None if that was never noted, or is torn."""
    try:
        raw = path.read_bytes()[HEADER.size : NAMES_BEGIN]
        [length] = STATS_HEADER.unpack_from(raw)
        return msgspec.msgpack.decode(raw[STATS_HEADER.size : STATS_HEADER.size + length], type=SchedulerStats)
    except (OSError, struct.error, msgspec.DecodeError):
        return None
