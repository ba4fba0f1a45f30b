"""Memory that is touched ahead of its use."""

import ctypes
import time
from pathlib import Path

import pytest

from interleaf import _native

MEGABYTE = 1 << 20


def resident_bytes(memory: _native.Memory) -> int:
    """How much of it the system has handed out, by /proc/self/smaps."""
    resident, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= memory.address < end
        elif inside and first == "Rss:":
            resident += int(line.split()[1]) * 1024
    return resident


def wait_for(memory: _native.Memory, least: int) -> int:
    deadline = time.monotonic() + 60
    while (resident := resident_bytes(memory)) < least and time.monotonic() < deadline:
        time.sleep(0.2)  # the process must be idle
    return resident


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_touching_ahead_changes_no_value_and_keeps_its_distance() -> None:
    memory = _native.Memory(64 * MEGABYTE)
    values = (ctypes.c_uint8 * memory.bytes).from_address(memory.address)
    values[0], values[5 * MEGABYTE] = 7, 9
    memory.touch_ahead(0, 16 * MEGABYTE)
    assert wait_for(memory, 16 * MEGABYTE) >= 16 * MEGABYTE
    memory.touch_ahead(4 * MEGABYTE, 16 * MEGABYTE)  # more than half of it is still ahead: nothing to do
    time.sleep(0.1)
    assert resident_bytes(memory) < 24 * MEGABYTE
    memory.touch_ahead(60 * MEGABYTE, 16 * MEGABYTE)  # more than there is
    assert wait_for(memory, 64 * MEGABYTE) == 64 * MEGABYTE
    assert values[0] == 7 and values[5 * MEGABYTE] == 9
    assert not any(values[i] for i in range(1, 64 * MEGABYTE, 4096))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_nothing_is_touched_while_the_process_computes() -> None:
    memory = _native.Memory(64 * MEGABYTE)
    memory.touch_ahead(0, 32 * MEGABYTE)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        pass
    # All of it would take a tenth of that; whenever the machine stops this process for long, a little is touched.
    assert resident_bytes(memory) <= 8 * MEGABYTE
    assert wait_for(memory, 32 * MEGABYTE) == 32 * MEGABYTE


def test_memory_goes_while_it_is_being_touched() -> None:
    for _ in range(20):
        memory = _native.Memory(256 * MEGABYTE)
        memory.touch_ahead(0, memory.bytes)
        del memory
