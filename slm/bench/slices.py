"""Jobs of `slm.bench.jobs` that share the time of the machine: each goes on for a second or less, then the next.

A machine that others share, or whose cores are halves of one, changes its speed twofold from one second to the next
(measured: the same batch took 0.9 to 1.9 s of processor time). Jobs of minutes, one after the other, meet different
machines. Jobs that are stopped and continued in short slices meet the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from slm.bench.clock import Timing
from slm.bench.jobs import AT_THE_LINE, command_of, environment, report_of


@dataclass(frozen=True)
class Job:
    """A job's name and arguments, and how many seconds one of its slices lasts."""

    name: str
    arguments: Mapping[str, Any]
    slice_s: float = 1.0


@dataclass
class _Runner:
    process: "subprocess.Popen[bytes]"
    out: IO[bytes]
    err: IO[bytes]
    slices: list[tuple[float, float]] = field(default_factory=list)
    """When it ran, by the clock that reports use."""

    def signal(self, number: int) -> None:
        """Send a signal to it and to its workers."""
        os.killpg(self.process.pid, number)

    def prepare(self) -> None:
        """Wait until it has stopped at the line, or ended."""
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def go_on(self, seconds: float) -> bool:
        """Run for so long, or until it ends; returns whether it has."""
        began = time.perf_counter()
        self.signal(signal.SIGCONT)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGSTOP)
        self.slices.append((began, time.perf_counter()))
        return self.process.returncode is not None

    def end(self) -> None:
        """Kill it and its workers, unless it has ended."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait()


def in_slices(jobs: Mapping[str, Job]) -> dict[str, Timing]:
    """Run all jobs to their ends, a slice of each in turn, none before all are ready; their timings.

    Time by the clock is that of a job's own slices. Jobs should end at about the same time, each with a slice in
    proportion to its length: what remains of the last when the others have ended has the machine to itself.

    Raises:
        RunError: a job failed, with the end of its standard error.
    """
    with _started(jobs) as runners:
        timings: dict[str, Timing] = {}
        while len(timings) < len(jobs):
            for name, runner in runners.items():
                if name not in timings and runner.go_on(jobs[name].slice_s):
                    timings[name] = _timing(jobs[name], runner)
        return timings


@contextmanager
def _started(jobs: Mapping[str, Job]) -> Iterator[dict[str, _Runner]]:
    """Processes of the jobs, each in a group of its own; none outlives this.

    (Should this process be killed itself, the kernel ends them: stopped groups without a parent get SIGHUP.)
    """
    runners: dict[str, _Runner] = {}
    with ExitStack() as stack:
        for name, job in jobs.items():
            out, err = (
                stack.enter_context(tempfile.TemporaryFile()) for _ in "oe"
            )  # a pipe would fill: nobody reads it
            command, where = command_of(job.name, dict(job.arguments)), environment() | {AT_THE_LINE: "1"}
            process = subprocess.Popen(command, stdout=out, stderr=err, env=where, process_group=0)
            runners[name] = _Runner(process, out, err)
            stack.callback(runners[name].end)
            runners[name].prepare()  # one prepares after the other
        yield runners


def _timing(job: Job, runner: _Runner) -> Timing:
    report = report_of(job.name, job.arguments, runner.process.returncode, _text(runner.out), _text(runner.err))
    began, ended = report["began"], report["began"] + report["wall"]
    wall = sum(max(0.0, min(b, ended) - max(a, began)) for a, b in runner.slices)
    return Timing(wall, report["cpu"], report["amount"])


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
