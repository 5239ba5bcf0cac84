"""Jobs that are stopped and continued in turn; the jobs here are small scripts in place of `slm.bench.jobs`."""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from slm.bench import slices
from slm.bench.slices import Job, in_slices
from slm.config.errors import RunError

COUNTS = """
import json, os, time
from slm.bench.jobs import at_the_line
open({ready!r}, "w").close()
at_the_line()
everybody = [os.path.exists(path) for path in {all_ready!r}]
began, seen = time.perf_counter(), []
while time.process_time() < {cpu_s} + 0.5:
    seen.append(time.perf_counter())
    time.sleep(0.001)
    sum(range(10_000))
json.dump([everybody, seen], open({log!r}, "w"))
print(json.dumps({{"began": began, "wall": time.perf_counter() - began, "cpu": 1.0, "amount": len(seen)}}))
"""
FAILS = """
from slm.bench.jobs import at_the_line
{at_the_line}
raise SystemExit("the disk is full")
"""
WAITS = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({pids!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
from slm.bench.jobs import at_the_line
at_the_line()
time.sleep(600)
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's name is its script."""

    def command(name: str, arguments: dict[str, Any]) -> list[str]:
        return [sys.executable, "-c", name.format(**arguments)]

    monkeypatch.setattr(slices, "command_of", command)


@pytest.mark.usefixtures("scripts")
def test_nobody_starts_before_all_are_ready_and_then_they_alternate(tmp_path: Path) -> None:
    ready = {name: str(tmp_path / f"{name}.ready") for name in "ab"}
    jobs = {
        name: Job(
            COUNTS,
            {"ready": ready[name], "all_ready": list(ready.values()), "cpu_s": 0.3, "log": str(tmp_path / name)},
            slice_s=0.05,
        )
        for name in "ab"
    }
    timings = in_slices(jobs)
    seen: list[tuple[float, str]] = []
    for name in "ab":
        everybody, times = json.loads((tmp_path / name).read_text())
        assert all(everybody), f"{name} began when not all were ready"
        seen += [(time, name) for time in times]
        span = times[-1] - times[0]
        assert 0 < timings[name].wall < 0.9 * span, "time in which it was stopped isn't its own"
        assert timings[name].amount == len(times)
    changes = sum(a[1] != b[1] for a, b in pairwise(sorted(seen)))
    assert changes >= 4


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize("line", ["", "at_the_line()"], ids=["before the line", "after it"])
def test_a_failing_job_says_why_and_nobody_outlives_it(line: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    jobs = {
        "ends": Job(FAILS, {"at_the_line": line}),
        "waits": Job(WAITS, {"pids": str(pids)}, slice_s=0.05),
    }
    with pytest.raises(RunError, match="the disk is full"):
        in_slices(jobs)
    process, child = map(int, pids.read_text().split())
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    deadline = time.monotonic() + 30
    while alive(child):
        assert time.monotonic() < deadline, "a worker outlived its job"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process that isn't our child runs: one that has ended may not be taken away yet."""
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
