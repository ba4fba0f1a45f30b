"""What the machine leaves to this process: cores and memory, by the system and by cgroups."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP_MEMORY_FILES = tuple(
    (f"/sys/fs/cgroup/{limit}", f"/sys/fs/cgroup/{usage}", f"/sys/fs/cgroup/{directory}memory.stat", name)
    for limit, usage, directory, name in (
        ("memory.max", "memory.current", "", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/", "total_inactive_file"),
    )
)
"""Limit, usage, statistics, and the reclaimable part's name in the statistics: cgroups v2 and v1."""


def usable_cores() -> int:
    """Cores that this process may use, by affinity and by the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def free_memory() -> int:
    """Bytes that this process may still take: what the system has available, and what its cgroup allows."""
    available = 1 << 62
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    for limit, usage, statistics, name in CGROUP_MEMORY_FILES:
        try:
            # Files that were read a while ago count as used, but are dropped when memory is asked for.
            counted = dict(line.split() for line in Path(statistics).read_text().splitlines())
            used = int(Path(usage).read_text()) - int(counted[name])
            available = min(available, int(Path(limit).read_text()) - used)
        except (OSError, ValueError, KeyError):
            continue
    return max(available, 0)
