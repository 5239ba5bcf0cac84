"""One node's part of a run: torchrun's agent, with the two things that a preemptible job needs and torchrun lacks.

torchrun (`torch.distributed.run`) dies of SIGUSR1, answers SIGTERM by giving its workers 30 seconds, and turns every
failure of a worker into exit code 1. Here a request to stop (SIGUSR1, SIGTERM, Ctrl-C) is passed to the workers as
SIGTERM (SIGUSR1 may be taken by NCCL), on which the trainer saves at the step boundary, and a stop that can be resumed
comes back as `RESUMABLE`.

    srun python -m slm.launch.node --processes 8 --head node01 --port 23456 --resumable FILE -- RECIPE [k=v ...]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from slm.config.cores import usable_cores
from slm.config.errors import RESUMABLE

STOPS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
RENDEZVOUS_SECONDS = 900
"""How long the nodes wait for each other: the slowest may still be loading its environment from a shared disk."""


@dataclass(frozen=True)
class Place:
    """This node among all: ``node`` of ``nodes``; the first one listens at ``head:port``. One node needs no address."""

    nodes: int = 1
    node: int = 0
    head: str = "localhost"
    port: int = 0

    def rendezvous(self) -> dict[str, Any]:
        """The arguments of torch's `LaunchConfig` that say how the nodes meet.

        Several nodes meet statically: their number and order are Slurm's, and a lost node ends the job (it is requeued
        and resumes), so nothing has to be negotiated.
        """
        if self.nodes == 1:
            return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
        return {
            "rdzv_backend": "static",
            "rdzv_endpoint": f"{self.head}:{self.port}",
            "rdzv_configs": {"rank": self.node, "timeout": RENDEZVOUS_SECONDS},
        }


class _NothingStarted(BaseException):
    """Asked to stop while there was no worker yet. A BaseException: torch's agent must not take it for a failure."""


def run_workers(command: Sequence[str], processes: int, place: Place | None = None) -> int:
    """Run ``python COMMAND`` as ``processes`` workers of this node and return the exit code.

    0: all workers succeeded. `RESUMABLE`: they were stopped and have saved, or had nothing to save yet. Else the
    exit code of the worker that failed first (1 if a signal killed it).
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    place = place or Place()
    cores = int(os.environ.get("SLURM_CPUS_ON_NODE") or usable_cores())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "60")  # mirrors may still be sending their last records
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it would say is said below
    config = LaunchConfig(
        min_nodes=place.nodes, max_nodes=place.nodes, nproc_per_node=processes, run_id="slm", max_restarts=0,
        start_method="spawn", signals_to_handle="SIGHUP,SIGQUIT", **place.rendezvous(),
    )  # fmt: skip
    stop = _Forwarding()
    with stop:
        try:
            elastic_launch(config, sys.executable)(*command)
        except _NothingStarted:
            return RESUMABLE
        except ChildFailedError as error:
            return stop.exit_code({rank: failure.exitcode for rank, failure in error.failures.items()})
    return 0


class _Forwarding:
    """Context manager: passes a request to stop on to the workers; a second Ctrl-C kills them."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "_Forwarding":
        self._before = {number: signal.signal(number, self._handle) for number in STOPS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.requested and number == signal.SIGINT
        self.requested = True
        workers = children(os.getpid())
        for pid in workers:
            send(pid, signal.SIGKILL if again else signal.SIGTERM)
        if not workers:
            raise _NothingStarted

    def exit_code(self, failures: dict[int, int]) -> int:
        """What the workers' exit codes (negative: a signal's number) say about the node; explained on standard error."""
        resumable = {RESUMABLE}
        if self.requested:  # a worker that hadn't reached the training loop yet dies of the signal: nothing is lost
            resumable |= {-signal.SIGUSR1, -signal.SIGTERM}
        if failures and set(failures.values()) <= resumable:
            return RESUMABLE
        rank, code = next((rank, code) for rank, code in failures.items() if code not in resumable)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        print(
            f"slm: process {rank} of this node {how}, so the others were stopped. Its own message stands above.",
            file=sys.stderr,
        )
        return code if code > 0 else 1


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def children(pid: int) -> list[int]:
    """The direct child processes of ``pid``, without those that ended and are yet to be waited for."""
    if Path("/proc/self/stat").exists():
        lines = []
        for file in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = file.read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it ended meanwhile
            lines.append((file.parent.name, parent, state))
    else:
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=True)
        lines = [tuple(line.split()) for line in listed.stdout.splitlines()]  # type: ignore[misc]
    return [int(own) for own, parent, state in lines if int(parent) == pid and not state.startswith("Z")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Under ``srun``: one task per node; Slurm's environment says which one this is."""
    parser = argparse.ArgumentParser(prog="slm.launch.node", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, required=True, help="workers on this node, one per GPU")
    parser.add_argument("--head", required=True, help="host name of the first node")
    parser.add_argument("--port", type=int, required=True, help="a free port of the first node")
    parser.add_argument("--resumable", type=Path, required=True, help="file to make when the run stopped resumably")
    parser.add_argument("recipe", nargs="+", help="what `slm train` is given")
    given = parser.parse_args(arguments)
    place = Place(int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NODEID"]), given.head, given.port)
    code = run_workers(["-m", "slm", "train", *given.recipe], given.processes, place)
    if code != RESUMABLE:
        return code
    # Said by a file and not by the exit code: with --kill-on-bad-exit the first node to leave with a code other than 0
    # would have srun kill the nodes that are still leaving.
    given.resumable.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
