"""Child processes that don't outlive their parent."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable


def with_parent(number: int = signal.SIGTERM) -> Callable[[], None] | None:
    """For ``preexec_fn``: asks Linux to send a signal when the parent is gone, even by SIGKILL; None elsewhere.

    SIGHUP is as by default in the child, also under nohup: stopped workers of a process that has gone leave by it.
    """
    if sys.platform != "linux":
        return None

    def ask() -> None:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    return ask
