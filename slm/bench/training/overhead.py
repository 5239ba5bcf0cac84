"""What our loop costs beyond its matrix products, and what its records and checkpoints cost.

Two ways. *Beside a bare loop*: forward, backward and optimiser step alone on the same batches, a step of ours and one of theirs in
turns; it needs a quiet machine, because a difference of 1% drowns in 5% of noise. *From within*: a step's processor time, less the time
inside of forward, backward and optimiser. That is what the loop adds, the loader's and the writers' threads included, whatever else
the machine is doing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
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


@dataclass
class Spent:
    """Seconds: of processor time, by the wall."""

    cpu: float = 0.0
    wall: float = 0.0

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.cpu - other.cpu, self.wall - other.wall)


def now(alone: bool = False) -> Spent:
    """The clocks. ``alone``: this thread's processor time instead of the whole process's."""
    return Spent(time.thread_time() if alone else time.process_time(), time.perf_counter())


def spent(work: Callable[[], object]) -> Spent:
    """Do it once; this process's threads are counted."""
    start = now()
    work()
    return now() - start


def medians(found: Sequence[Spent]) -> dict[str, float]:
    """As plain data."""
    return {"cpu": median([s.cpu for s in found]), "wall": median([s.wall for s in found])}


class Inside:
    """Adds up the time inside of a session's forward and backward passes and its optimisers' steps.

    With one thread that is the calling thread's time, so that what other threads of the process do meanwhile isn't taken for it.
    """

    def __init__(self, session: Session) -> None:
        self.total, self.alone, self.forward = (
            Spent(),
            session.run.impl.threads == 1,
            session.state.spread.module.forward,
        )
        session.state.spread.module.forward = self._counted(self.forward)  # type: ignore[method-assign]
        for optimizer in session.state.optimizers:
            optimizer.step = self._counted(optimizer.step)  # type: ignore[method-assign]
            optimizer.zero_grad = self._counted(optimizer.zero_grad)  # type: ignore[method-assign]

    def _counted(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            start = now(self.alone)
            result = work(*arguments, **named)
            passed = now(self.alone) - start
            self.total = Spent(self.total.cpu + passed.cpu, self.total.wall + passed.wall)
            return result

        return counted

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Backward passes count within."""
        whole = torch.Tensor.backward
        torch.Tensor.backward = self._counted(whole)  # type: ignore[method-assign]
        try:
            yield
        finally:
            torch.Tensor.backward = whole  # type: ignore[method-assign]

    def measure(self, work: Callable[[], object]) -> tuple[Spent, Spent]:
        """Do some steps; (time inside, time outside)."""
        before = self.total
        with self.backward():
            all_of_it = spent(work)
        inside = self.total - before
        return inside, all_of_it - inside


def _steps(session: Session, steps: int) -> None:
    for _ in range(steps):
        session.train_step()
        session.write_down()


class Bare:
    """Forward, backward, optimiser step: a second session's model and optimiser, on batches read before."""

    def __init__(self, session: Session, batches: Sequence[Batch]) -> None:
        self.state, self.device, self.batches, self.next = session.state, session.world.device, batches, 0
        self.precision = session.run.train.precision
        self.losses: list[torch.Tensor] = []

    def step(self) -> None:
        """One step; nothing is clipped, counted or looked at."""
        batch = self.batches[self.next].to(self.device)
        self.next += 1
        with autocast(self.device, self.precision):
            loss = self.state.spread.module(*self.state.objective.inputs(batch))[0]
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
    """Seconds of a step: ``loop`` ours, ``bare`` (medians of ``job.steps``), and ours taken apart, ``inside`` and ``outside`` (means, so
    that the steps with a record count)."""
    with ExitStack() as stack:
        loop, other = (stack.enter_context(closing(session_of(replace(job, out=f"{job.out}/{name}")))) for name in "ab")
        rows = job.shape.rows
        batches = [make_batch(loop.state.loader.plan, range(i * rows, (i + 1) * rows)) for i in range(job.total)]
        bare, meter = Bare(other, batches), Inside(loop)
        apart: list[tuple[Spent, Spent]] = []
        alone: list[Spent] = []
        for step in range(job.total):
            turns = [
                lambda: apart.append(meter.measure(lambda: _steps(loop, 1))),
                lambda: alone.append(spent(bare.step)),
            ]
            for turn in turns if step % 2 else reversed(turns):
                turn()
        bare.check()
    timed = apart[job.warm :]
    return {
        "loop": medians([Spent(i.cpu + o.cpu, i.wall + o.wall) for i, o in timed]),
        "bare": medians(alone[job.warm :]),
        "inside": _means([i for i, _ in timed]),
        "outside": _means([o for _, o in timed]),
    }


def _means(found: Sequence[Spent]) -> dict[str, float]:
    return {"cpu": sum(s.cpu for s in found) / len(found), "wall": sum(s.wall for s in found) / len(found)}


def watched(job: Job) -> dict[str, Any]:
    """Seconds outside of forward, backward and optimiser in `LOG_EVERY` steps: with nothing written down (``off``), with a record
    (``records``), and with a checkpoint as well (``saves``); ``inside``: seconds within, for comparison."""
    blocks = max(2, job.steps // LOG_EVERY)
    longer = replace(job, warm=LOG_EVERY, steps=blocks * LOG_EVERY)
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(closing(session_of(replace(longer, out=f"{job.out}/{name}"))))
            for name in ("off", "records", "saves")
        }
        silence(sessions["off"])
        meters = {name: Inside(session) for name, session in sessions.items()}
        found: dict[str, list[Spent]] = {name: [] for name in (*sessions, "inside")}
        for block in range(blocks + 1):
            for name, session in sessions.items():
                saves = name == "saves" and block > 0
                inside, outside = meters[name].measure(lambda s=session, saves=saves: _block(s, saves))  # type: ignore[misc]
                found[name].append(outside)
                found["inside"] += [inside] if name == "off" else []
    return {name: medians(times[1:]) for name, times in found.items()}


def _block(session: Session, saves: bool) -> None:
    if saves:
        session.save()  # at the beginning: what is still being written then is written within these steps
    _steps(session, LOG_EVERY)


def silence(session: Session) -> None:
    """Have a session count and write nothing."""
    session._recorded = lambda step: False  # type: ignore[method-assign]
    session.meter.count = lambda batch, nll, kl: None  # type: ignore[method-assign]
