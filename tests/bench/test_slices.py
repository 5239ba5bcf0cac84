"""Jobs that are stopped and continued in turn; the jobs here are small scripts in place of `slm.bench.jobs`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from slm.bench import slices
from slm.bench.slices import Contestant, in_slices
from slm.config.errors import RunError

COUNTS = """
import json, os, time
from slm.bench.line import at_the_line
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
from slm.bench.line import at_the_line
{at_the_line}
raise SystemExit("the disk is full")
"""
WAITS = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({pids!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
from slm.bench.line import at_the_line
at_the_line()
{then}
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
        name: Contestant(
            COUNTS,
            {"ready": ready[name], "all_ready": list(ready.values()), "cpu_s": 0.3, "log": str(tmp_path / name)},
            slice_s=0.05,
        )
        for name in "ab"
    }
    reports = in_slices(jobs)
    seen: list[tuple[float, str]] = []
    for name in "ab":
        everybody, times = json.loads((tmp_path / name).read_text())
        assert all(everybody), f"{name} began when not all were ready"
        seen += [(time, name) for time in times]
        span = times[-1] - times[0]
        assert 0 < reports[name]["wall"] < 0.9 * span, "time in which it was stopped isn't its own"
        assert reports[name]["amount"] == len(times)
    changes = sum(a[1] != b[1] for a, b in pairwise(sorted(seen)))
    assert changes >= 4


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize("line", ["", "at_the_line()"], ids=["before the line", "after it"])
def test_a_failing_job_says_why_and_nobody_outlives_it(line: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    jobs = {
        "ends": Contestant(FAILS, {"at_the_line": line}),
        "waits": Contestant(WAITS, {"pids": str(pids), "then": "time.sleep(600)"}, slice_s=0.05),
    }
    with pytest.raises(RunError, match="the disk is full"):
        in_slices(jobs)
    process, child = map(int, pids.read_text().split())
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert ends(child)


@pytest.mark.usefixtures("scripts")
def test_workers_of_a_job_that_crashes_are_ended(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(RunError, match="failed"):
        in_slices({"crashes": Contestant(WAITS, {"pids": str(pids), "then": "os._exit(9)"})})
    assert ends(int(pids.read_text().split()[1]))


@pytest.mark.usefixtures("scripts")
def test_a_job_that_does_not_stop_at_the_line_is_no_contestant() -> None:
    with pytest.raises(RunError, match="didn't stop at the line"):
        in_slices({"a": Contestant("print('{{}}')", {})})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_jobs_end_with_who_runs_them(number: int, tmp_path: Path) -> None:
    """Whether it is asked to end or just gone, the job and its worker go, too."""
    pids = tmp_path / "pids"
    script = WAITS.format(pids=str(pids), then="time.sleep(600)")
    runner = subprocess.Popen([
        sys.executable, "-c",
        "import sys; from slm.bench import slices as s; s.command_of = lambda *_: [sys.executable, '-c', sys.argv[1]]; "
        "s.in_slices({n: s.Contestant('x', {}, 0.05) for n in sys.argv[2:]})", script, "alone",
    ])  # fmt: skip
    try:
        assert within(30, lambda: pids.exists() and len(pids.read_text().split()) == 2)
        process, child = map(int, pids.read_text().split())
        time.sleep(0.5)
        runner.send_signal(number)
        assert runner.wait(30) in (128 + number, -number)
        assert ends(process)
        if number == signal.SIGTERM:  # after SIGKILL only stopped workers go by the kernel; ours leave by themselves
            assert ends(child)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    finally:
        runner.kill()


def ends(pid: int) -> bool:
    """Whether a process that isn't our child ends, at once or soon."""
    return within(30, lambda: not alive(pid))


def within(seconds: float, true: Callable[[], bool]) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    """Whether a process that isn't our child runs: one that has ended may not be taken away yet."""
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
