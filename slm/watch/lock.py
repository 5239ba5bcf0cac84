"""Whether a trainer holds a run's directory, found out without touching its lock.

Trying the lock would hold it for a moment, and a trainer that starts in that moment would be refused.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def held(run_dir: Path) -> bool | None:
    """Whether a process trains in ``run_dir``; None where this machine can't tell (it runs on another one)."""
    file = run_dir / ".lock"
    try:
        inode, text = file.stat().st_ino, file.read_text(errors="replace")
    except OSError:
        return None
    locks = _locked_inodes()
    if locks is not None and inode in locks:
        return True
    host, _, pid = text.strip().partition(" ")
    if host != socket.gethostname():
        return None
    if locks is not None:
        return False
    return pid.isdigit() and _alive(int(pid))


def _locked_inodes() -> set[int] | None:
    """Inodes that processes of this machine hold a `flock` on; None where the system doesn't list them."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    fields = [line.split() for line in lines]
    return {int(f[5].rpartition(":")[2]) for f in fields if len(f) > 5 and f[1] == "FLOCK"}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, and alive
    return True
