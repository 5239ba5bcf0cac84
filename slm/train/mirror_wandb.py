"""The Weights & Biases copy, sent by a process of its own.

The wandb library starts threads and a service, hooks into the interpreter's exit, and may wait for a network for minutes.
In a child process none of that can slow, hang or crash the trainer: records go through a pipe that is never waited for, and
at the end the child has a bounded time before it is killed with all that it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.run import Run

CLOSE_SECONDS = 30.0
"""How long the end of a run waits for wandb to send what is left."""
BACKLOG_BYTES = 8 << 20
"""Records that wait for a stuck child, some 20,000 of them; with more the copy is given up."""


class MirrorLost(Exception):
    """A copy ended for a reason that is a sentence already."""


class WandbMirror:
    """Sends records to Weights & Biases under an id that a resumed run takes up again."""

    def __init__(self, run: "Run", run_dir: Path) -> None:
        self._run_dir, self._backlog, self._said = run_dir, b"", b""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "slm.train.wandb_process"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is the trainer's to handle, and the end can be made of the whole group
        )  # fmt: skip
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._into, self._out = self._child.stdin.fileno(), self._child.stdout.fileno()
        os.set_blocking(self._into, False)
        os.set_blocking(self._out, False)
        self._send(
            {
                "project": run.log.wandb.project,
                "entity": run.log.wandb.entity,
                "mode": run.log.wandb.mode,
                "dir": str(run_dir.absolute()),
                "name": run.name,
                "id": re.sub(r"[^\w-]+", "-", run.name)[:100] + f"-{run.identity}",
                "resume": "allow",
                "config": run.experiment(),
            }
        )

    def write(self, record: dict[str, Any]) -> None:
        """Queue a record. Raises `MirrorLost` when the child reported a fault, ended, or takes no more."""
        self._listen()
        self._send({"step": record["step"], **scalars(record)})

    def close(self) -> None:
        """Let the child finish, `CLOSE_SECONDS` at most. Raises `MirrorLost` if it didn't."""
        assert self._child.stdin is not None
        deadline = time.monotonic() + CLOSE_SECONDS
        try:
            self._send({"end": True})
            while self._backlog:
                self._wait([], [self._into], deadline)
                self._flush()
            self._child.stdin.close()
            while self._child.poll() is None:
                self._wait([self._out], [], deadline)
                self._listen()
            self._listen()
        finally:
            self._kill()

    def _send(self, message: dict[str, Any]) -> None:
        self._backlog += json.dumps(message).encode() + b"\n"
        if len(self._backlog) > BACKLOG_BYTES:
            self._kill()
            raise MirrorLost("it hangs, and takes no more records.")
        self._flush()

    def _flush(self) -> None:
        """Write as much as the pipe takes now."""
        try:
            while self._backlog:
                self._backlog = self._backlog[os.write(self._into, self._backlog) :]
        except BlockingIOError:
            pass  # full: the rest goes with the next record
        except BrokenPipeError:
            self._listen()
            raise MirrorLost("its process ended.") from None

    def _listen(self) -> None:
        """Raise `MirrorLost` with what the child reported, if it reported a fault."""
        try:
            while piece := os.read(self._out, 65536):
                self._said += piece
        except BlockingIOError:
            pass
        if self._said.endswith(b"\n"):
            self._kill()
            raise MirrorLost(json.loads(self._said.splitlines()[0])["error"])

    def _wait(self, readable: list[int], writable: list[int], deadline: float) -> None:
        """Wait a moment for the child; raise `MirrorLost` at the deadline."""
        if time.monotonic() > deadline:
            raise MirrorLost(
                f"it did not finish within {CLOSE_SECONDS:.0f} s. What it had is in {self._run_dir}/wandb: `wandb sync` sends it."
            )
        select.select(readable, writable, [], 0.05)
        if readable:
            time.sleep(0.02)  # a closed pipe is always readable; the child's end is what is waited for

    def _kill(self) -> None:
        """End the child and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record under flat names: ``eval/heldout_bpb_by_source/web``. Nothing for what is None."""
    flat: dict[str, float] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, below in value.items():
                visit(f"{prefix}/{key}", below)
        elif isinstance(value, int | float):
            flat[prefix] = value

    for key, value in record.items():
        if key not in ("kind", "step"):
            visit(f"{record['kind']}/{key}", value)
    return flat
