"""The memory that this process has held."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_resident_bytes() -> int:
    """The most memory that this process has had resident, in bytes.

    On Linux the peak of the address space (``VmHWM``): ``ru_maxrss`` survives ``exec``, so that a process begun by a
    large one would be told its parent's peak.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    import resource

    factor = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor
