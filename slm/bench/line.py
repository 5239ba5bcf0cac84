"""The line at which jobs wait for each other; see `slm.bench.slices`."""

from __future__ import annotations

import os
import signal

AT_THE_LINE = "SLM_BENCH_AT_THE_LINE"
"""Environment variable of jobs that stop themselves once all is ready, until they are continued."""


def at_the_line() -> None:
    """Called by a job when everything is imported and made, and its clock is about to start."""
    if os.environ.get(AT_THE_LINE):
        os.kill(os.getpid(), signal.SIGSTOP)
