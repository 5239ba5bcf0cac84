"""How many processors this process may use."""

from __future__ import annotations

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Processors that this process may run on, at least 1.

    Not the machine's: a batch system binds a job to some of its cores, and a container has a quota of time (cgroup v2,
    ``cpu.max``: microseconds of processor time in a period). Threads beyond either get in each other's way.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max": no quota
        pass
    return max(1, cores)
