"""What our loop costs beyond its matrix products: beside a bare loop, and with its records and checkpoints beside without.

Everything takes turns in one process on the same batches, a step (or a few) each, so that what disturbs the machine disturbs
all of it. Medians of the steps are compared, by the processors' time and by the wall.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from slm.bench.results import median
from slm.bench.training.job import LOG_EVERY, Job
from slm.bench.training.ours import session_of
from slm.config.errors import RunError
from slm.data.loader import Batch, make_batch
from slm.model.precision import autocast
from slm.train.loop import Session


@dataclass(frozen=True)
class Spent:
    """Seconds of one piece of work."""

    cpu: float
    wall: float


def spent(work: Callable[[], object]) -> Spent:
    """Do it once, this process's threads included."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall)


def _medians(found: Sequence[Spent]) -> Spent:
    return Spent(median([s.cpu for s in found]), median([s.wall for s in found]))


def _steps(session: Session, steps: int) -> None:
    for _ in range(steps):
        session.train_step()
        session.write_down()


class Bare:
    """Forward, backward, optimiser step: a second copy of a session's model and optimiser, on batches read before."""

    def __init__(self, session: Session, batches: Sequence[Batch]) -> None:
        self.state, self.device, self.batches, self.next = session.state, session.world.device, batches, 0
        self.precision = session.run.train.precision
        self.losses: list[torch.Tensor] = []

    def step(self) -> None:
        """One step; nothing is clipped, counted or looked at."""
        batch = self.batches[self.next].to(self.device)
        self.next += 1
        with autocast(self.device, self.precision):
            loss, _ = self.state.spread.module(batch.tokens_BT, batch.targets_BT, batch.positions_BT, batch.docs_BT)
        loss = loss / (batch.targets_BT != -100).sum()
        loss.backward()
        self.losses.append(loss.detach())
        for optimizer in self.state.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def check(self) -> None:
        """Raise `RunError` unless it trained: what does nothing is no measure."""
        if not self.losses[-1] < self.losses[0]:
            raise RunError(f"The loss of the bare loop didn't fall: {[round(float(x), 3) for x in self.losses]}.")


def beside_bare(job: Job) -> dict[str, Any]:
    """Seconds of a step of our loop and of the bare one, (``loop``, ``bare``), medians of ``job.steps``."""
    with ExitStack() as stack:
        loop, other = (stack.enter_context(closing(session_of(replace(job, out=f"{job.out}/{name}")))) for name in "ab")
        rows = job.shape.rows
        batches = [make_batch(loop.state.loader.plan, range(i * rows, (i + 1) * rows)) for i in range(job.total)]
        bare = Bare(other, batches)
        found: dict[str, list[Spent]] = {"loop": [], "bare": []}
        for step in range(job.total):
            turns = [("loop", lambda: _steps(loop, 1)), ("bare", bare.step)]
            for name, work in turns if step % 2 else reversed(turns):
                found[name].append(spent(work))
        bare.check()
    return {name: vars(_medians(times[job.warm :])) for name, times in found.items()}


def watched(job: Job) -> dict[str, Any]:
    """Seconds of `LOG_EVERY` steps with nothing written down, with records, and with records and a checkpoint."""
    blocks = max(2, job.steps // LOG_EVERY)
    longer = replace(job, warm=LOG_EVERY, steps=blocks * LOG_EVERY)
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(closing(session_of(replace(longer, out=f"{job.out}/{name}"))))
            for name in ("off", "records", "saves")
        }
        silence(sessions["off"])
        found: dict[str, list[Spent]] = {name: [] for name in sessions}
        for block in range(blocks + 1):
            for name, session in sessions.items():
                if name == "saves" and block:
                    found[name].append(spent(lambda session=session: (session.save(), _steps(session, LOG_EVERY))))
                else:
                    found[name].append(spent(lambda session=session: _steps(session, LOG_EVERY)))
    return {name: vars(_medians(times[1:])) for name, times in found.items()}


def silence(session: Session) -> None:
    """Have a session count and write nothing."""
    session._recorded = lambda step: False  # type: ignore[method-assign]
    session.meter.count = lambda batch, nll: None  # type: ignore[method-assign]
