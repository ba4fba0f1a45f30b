"""What the machine says that a process may use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interleaf.machine import free_memory, usable_cores


def test_the_machine_can_be_asked() -> None:
    assert usable_cores() >= 1
    assert 0 < free_memory() < 1 << 62


def test_a_cgroups_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n",
        "/sys/fs/cgroup/memory.max": "3000000\n",
        "/sys/fs/cgroup/memory.current": "1500000\n",
        "/sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 500000\nactive_file 7\n",
        "/sys/fs/cgroup/cpu.max": "150000 100000\n",
    }

    def read(path: Any) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    assert free_memory() == 2_000_000
    assert usable_cores() == 1
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert free_memory() == 8000 * 1024
    files["/sys/fs/cgroup/memory.max"] = "500\n"
    assert free_memory() == 0
