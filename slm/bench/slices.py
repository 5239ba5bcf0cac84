"""Jobs of `slm.bench.jobs` that share the time of the machine: each goes on for a second or less, then the next.

A machine that others share, or whose cores are halves of one, changes its speed twofold from one second to the next
(measured: the same batch took 0.9 to 1.9 s of processor time). Jobs of minutes, one after the other, meet different
machines. Jobs that are stopped and continued in short slices meet the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from slm.bench.jobs import command_of, environment, family, report_of
from slm.bench.line import AT_THE_LINE
from slm.config.children import with_parent
from slm.config.errors import RunError


@dataclass(frozen=True)
class Contestant:
    """A job's name and arguments, and how many seconds one of its slices lasts."""

    job: str
    arguments: Mapping[str, Any]
    slice_s: float = 1.0


def in_slices(contestants: Mapping[str, Contestant]) -> dict[str, dict[str, Any]]:
    """Run all jobs to their ends, a slice of each in turn, none before all are ready; their reports.

    The time by the clock in them is that of a job's own slices. Jobs should end at about the same time, each with a slice in
    proportion to its length: what remains of the last when the others have ended has the machine to itself.

    Raises:
        RunError: a job failed, with the end of its standard error; or it didn't stop at the line.
    """
    with _started(contestants) as runners:
        reports: dict[str, dict[str, Any]] = {}
        while len(reports) < len(contestants):
            for name, runner in runners.items():
                if name not in reports and runner.go_on():
                    reports[name] = runner.report()
        return {name: reports[name] for name in contestants}


@contextmanager
def _started(contestants: Mapping[str, Contestant]) -> Iterator[dict[str, "_Runner"]]:
    """The jobs' processes, each at the line and in a group of its own; none outlives this."""
    runners: dict[str, _Runner] = {}
    with _sigterm_raises(), ExitStack() as stack:
        for name, contestant in contestants.items():
            # Files, since nobody reads a pipe while it fills.
            out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in "oe")
            process = subprocess.Popen(
                command_of(contestant.job, contestant.arguments), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env=environment() | {AT_THE_LINE: "1"}, process_group=0, preexec_fn=with_parent(signal.SIGKILL),
            )  # fmt: skip
            runners[name] = _Runner(contestant, process, out, err)
            stack.callback(runners[name].end)
            runners[name].prepare()  # one after the other
        yield runners


@dataclass
class _Runner:
    contestant: Contestant
    process: "subprocess.Popen[bytes]"
    out: IO[bytes]
    err: IO[bytes]
    slices: list[tuple[float, float]] = field(default_factory=list)
    """When it ran, by the clock that reports use."""

    def prepare(self) -> None:
        """Wait until it has stopped at the line, or failed before."""
        found = os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if found is not None and (found.si_code, found.si_status) == (os.CLD_EXITED, 0):
            raise RunError(
                f"The benchmark's job {self.contestant.job} didn't stop at the line: it can't run in slices."
            )

    def go_on(self) -> bool:
        """Run for a slice, or until it ends; returns whether it has."""
        began = time.perf_counter()
        self._send(signal.SIGCONT)
        try:
            self.process.wait(self.contestant.slice_s)
            self._send(signal.SIGKILL)  # workers that a crash has left
        except subprocess.TimeoutExpired:
            self._send(signal.SIGSTOP)
            self._settle()
        self.slices.append((began, time.perf_counter()))
        return self.process.returncode is not None

    def report(self) -> dict[str, Any]:
        """What it reported at its end, with the time by the clock of its own slices."""
        job, arguments = self.contestant.job, self.contestant.arguments
        report = report_of(job, arguments, self.process.returncode, _text(self.out), _text(self.err))
        began, ended = report["began"], report["began"] + report["wall"]
        return {**report, "wall": sum(max(0.0, min(b, ended) - max(a, began)) for a, b in self.slices)}

    def end(self) -> None:
        """Kill it and its workers, unless it has ended."""
        if self.process.poll() is None:
            self._send(signal.SIGKILL)
        self.process.wait()

    def _send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _settle(self) -> None:
        """Wait until it and its workers have stopped: who is writing to a disk finishes that first, in its own time."""
        while any(_state(pid) not in "TZX" for pid in family(self.process.pid)):
            time.sleep(0.0005)


def _state(pid: int) -> str:
    """A process's state by a letter of ``/proc/PID/stat``: T stopped, Z and X ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends this process as an exception does, so that what it has started ends, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
