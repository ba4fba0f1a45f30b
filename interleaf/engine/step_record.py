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

HEADER = struct.Struct("<qI")
"""Step number, and the length in bytes of the names that follow."""
BYTES_PER_SEQUENCE = 64


class StepRecorder:
    """Writes the record.

    Args:
        path: of the file, which is made anew.
        max_num_seqs: how many names must fit; of longer ones the last are left out.
    """

    def __init__(self, path: Path, max_num_seqs: int) -> None:
        size = HEADER.size + BYTES_PER_SEQUENCE * max_num_seqs
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(descriptor, size)
            self._memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._room = size - HEADER.size

    def write(self, step: int, sequence_ids: Iterable[str]) -> None:
        """Note that a step begins, or that a request is taken in behind it."""
        names = "\n".join(sequence_ids).encode()[: self._room]
        self._memory[HEADER.size : HEADER.size + len(names)] = names
        HEADER.pack_into(self._memory, 0, step, len(names))

    def close(self) -> None:
        self._memory.close()


def read_step_record(path: Path) -> tuple[int, set[str]]:
    """Number of the last step that was begun, and the ids of its requests; (-1, nothing) if none was."""
    try:
        raw = path.read_bytes()
    except OSError:
        return -1, set()
    if len(raw) < HEADER.size:
        return -1, set()
    step, length = HEADER.unpack_from(raw)
    names = raw[HEADER.size : HEADER.size + length].decode("utf-8", "replace")
    return step, {name.split(".")[0] for name in names.split("\n") if name}
