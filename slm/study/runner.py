"""Runs a study: one subprocess per run, several at a time, each finished run once and for all.

A run counts as finished when its summary.json, written whole at its very end, carries its identity.
Killing the runner, a run or the machine therefore never costs a finished run, and an unfinished one goes
on from its newest checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slm.config.children import with_parent
from slm.config.errors import RunError
from slm.config.yaml import dump_yaml
from slm.study.plan import Planned

Command = Callable[[Path], list[str]]
"""Makes the command line that trains a resolved recipe."""

POLL_SECONDS = 0.2
LOG_TAIL_LINES = 15


def train_command(recipe: Path) -> list[str]:
    """`slm train` on a resolved recipe, with this very Python."""
    return [sys.executable, "-m", "slm", "train", str(recipe), "--json"]


def result_of(planned: Planned) -> dict[str, Any] | None:
    """The summary of a finished run, or None."""
    try:
        summary: dict[str, Any] = json.loads((planned.dir / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return summary if summary.get("identity") == planned.run.identity and summary.get("bpb") is not None else None


def run_study(runs: list[Planned], *, jobs: int, say: Callable[[str], None], command: Command = train_command) -> None:
    """Make all runs that aren't finished, ``jobs`` at a time.

    Raises:
        RunError: after all others are done, if a run failed; shows the end of its log.
    """
    waiting = [p for p in runs if result_of(p) is None]
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already")
    active: list[tuple[Planned, subprocess.Popen[bytes], float]] = []
    failed: list[Planned] = []
    total, done = len(runs), len(runs) - len(waiting)
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                planned = waiting.pop(0)
                active.append((planned, _start(planned, command), time.monotonic()))
                say(f"started {planned.arm} seed {planned.seed}")
            time.sleep(POLL_SECONDS)
            over = [one for one in active if one[1].poll() is not None]
            active = [one for one in active if one[1].returncode is None]
            for planned, process, began in over:
                result = result_of(planned)
                if result is None:
                    failed.append(planned)
                    say(f"FAILED {planned.arm} seed {planned.seed} (exit code {process.returncode})")
                    continue
                done += 1
                say(
                    f"[{done}/{total}] {planned.arm} seed {planned.seed}: {result['bpb']:.4f} bits per byte in {time.monotonic() - began:.0f} s"
                )
    finally:  # Ctrl-C, or a failure here: let them save and leave
        for _, process, _ in active:
            process.send_signal(signal.SIGTERM)
        for _, process, _ in active:
            process.wait()
    if failed:
        first = failed[0]
        raise RunError(
            f"{len(failed)} of {total} runs failed; the finished ones are kept, and the same command tries again. The end of "
            f"{first.dir / 'log.txt'} ({first.arm} seed {first.seed}):\n{_tail(first.dir / 'log.txt')}"
        )


def _start(planned: Planned, command: Command) -> subprocess.Popen[bytes]:
    planned.dir.mkdir(parents=True, exist_ok=True)
    _wait_until_free(planned.dir)
    recipe = planned.dir / "recipe.yaml"
    recipe.write_text(dump_yaml(planned.run.model_dump(mode="json"), planned.run.notes))
    threads = planned.run.impl.threads
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with (planned.dir / "log.txt").open("wb") as log:
        return subprocess.Popen(
            command(recipe), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True, preexec_fn=with_parent(signal.SIGTERM),  # the run saves and leaves
        )  # fmt: skip


def _wait_until_free(folder: Path, seconds: float = 60) -> None:
    """Wait for a process of a killed runner that is still saving."""
    deadline = time.monotonic() + seconds
    with (folder / ".lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return  # closing the file frees it again
            except OSError:
                if time.monotonic() > deadline:
                    raise RunError(f"{folder} is in use by another process for more than {seconds:.0f} s.") from None
                time.sleep(POLL_SECONDS)


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
