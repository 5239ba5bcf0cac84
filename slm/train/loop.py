"""The training loop, top to bottom.

Build, resume, then for each step: a batch, the step (`slm.train.step`), and whatever is due: a record, an evaluation, a checkpoint. The
host waits for the device only where something is written down.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slm import checkpoint
from slm.config.errors import ConfigError, RunError
from slm.data.corpus import Corpus
from slm.data.loader import Loader
from slm.data.plan import Horizon
from slm.data.plan.of_corpus import plan_of
from slm.model.attention.routing import explain, told
from slm.model.decoder import Decoder
from slm.model.precision import product_dtype
from slm.train import compiling
from slm.train.course import Course
from slm.train.heldout import Heldout
from slm.train.kernels import kernels
from slm.train.kernels import note as kernels_note
from slm.train.measure import Meter
from slm.train.metrics import MetricsLog
from slm.train.mirror import Mirrors
from slm.train.parallel.world import World
from slm.train.profile import profiler
from slm.train.progress import Silent, TrainProgress
from slm.train.recording import WARM_UP
from slm.train.rundir import claimed, run_dir_of
from slm.train.signals import StopRequest
from slm.train.state import TrainState, build, save
from slm.train.step import Stepper
from slm.train.taking_up import take_up

if TYPE_CHECKING:
    from slm.run import Run


@dataclass(frozen=True)
class TrainResult:
    """How training ended. ``interrupted``: asked to stop before the budget was used up."""

    model: Decoder
    run_dir: Path
    step: int
    total_steps: int
    tokens: int
    seconds: float
    skipped: int
    interrupted: bool


def train(run: "Run", corpus: Corpus, world: World, progress: TrainProgress | None = None) -> TrainResult:
    """Train a run to the end of its budget, going on from its newest checkpoint if there is one.

    Raises:
        ConfigError: the run directory holds another experiment; a schedule longer than the budget.
        RunError: damaged checkpoint or data, changed data, a full disk, a diverged run.
    """
    progress = progress if progress is not None and world.main else Silent()
    run_dir = run_dir_of(run)
    with ExitStack() as stack:
        if world.main:
            stack.enter_context(claimed(run, run_dir))
        stop = stack.enter_context(StopRequest())
        stack.enter_context(kernels(run.impl.kernels, world.device))
        session = Session(run, corpus, world, run_dir, progress)
        stack.callback(session.close)
        session.start()
        while session.state.step < session.course.end and not world.any(stop.requested or session.out_of_time):
            session.train_step()
            session.write_down()
        return session.finish()


class Session:
    """One process's work on a run, from (re)start to end."""

    def __init__(self, run: "Run", corpus: Corpus, world: World, run_dir: Path, progress: TrainProgress) -> None:
        self.run, self.corpus, self.world, self.run_dir, self.progress = run, corpus, world, run_dir, progress
        if run.impl.threads:
            torch.set_num_threads(run.impl.threads)
        costs = run.costs()
        self.course = Course.of(run, costs)
        full = run.train.batch_tokens // run.data.seq_len
        plan = plan_of(corpus, run.data, horizon=Horizon(self.course.total_rows, full, self.course.params))
        if self.course.within(plan.limit) != self.course:
            self.course = self.course.within(plan.limit)  # data.on_exhaust=stop: a source ends before the budget does
            if run.train.until is not None and self.course.total < run.train.until:
                raise ConfigError(
                    f"A source is used up after {self.course.total:,} steps, within a stage that ends at step {run.train.until:,} "
                    f"(data.on_exhaust=stop): the stages behind it would never begin. Shorten it, or give its source more text."
                )
            progress.say(
                f"A source is used up after {self.course.total:,} steps, and data.on_exhaust=stop: the run ends there."
            )
        pin = world.device.type == "cuda"
        loader = Loader(
            plan, self.course.batches.rows[-1], rank=world.rank, world=world.size, say=progress.say, pin=pin
        )
        self.attention = told(explain(
            run.impl.attention, run.model, world.device, product_dtype(run.train.precision),
            run.data.seq_len, graph=run.impl.compile != "none" or run.impl.cuda_graphs,
        ))  # fmt: skip
        self.state: TrainState = build(run, corpus, loader, self.course, world)
        token_bytes_V = torch.from_numpy(corpus.tokenizer.token_bytes)
        self.meter = Meter(run, costs, world, token_bytes_V, self.state)
        self.heldout = Heldout(run, corpus, world, token_bytes_V, self.state)
        self.stepper = Stepper(self.state, run, world, self.course, self.meter)
        self.saved_at, self.saved_when, self.first = -1, time.perf_counter(), True

    def start(self) -> None:
        """Resume, open the records."""
        state, run, main, say = self.state, self.run, self.world.main, self.progress.say
        said, resumed_from = take_up(
            run, self.run_dir, state, self.course, self.world, self.corpus.tokenizer_bytes, say
        )
        if resumed_from is not None:
            self.saved_at = state.step
        self._check_sizes()
        keep = run.log.keep
        self.saver = checkpoint.Saver(
            self.run_dir, keep, self.world, stretch=self.course.stretches(keep.every),
            spare=resumed_from, asynchronous=run.log.checkpoint_async,
        )  # fmt: skip
        self.log = MetricsLog(self.run_dir / "metrics.jsonl", state.step, say) if main else None
        self.mirror = Mirrors.of(run, self.run_dir, state.step, say) if main else Mirrors({}, say)
        self.profiler = profiler(
            run.log.profile, self.run_dir / "profile", self.world, say, after=WARM_UP if run.impl.cuda_graphs else 0
        )
        self.progress.start(f"Training {run.name}", state.step, self.course.end)
        for line in said:
            say(line)
        state.spread.module.train()
        self.meter.begin(self.course.tokens(state.step))

    def _check_sizes(self) -> None:
        """Raise `ConfigError` if the processes can't share a batch that is still to come."""
        sizes = {
            self.course.rows(step) for step in (self.state.step, *self.course.batches.starts) if step >= self.state.step
        }
        if odd := sorted(size for size in sizes if size % self.world.size):
            raise ConfigError(
                f"The batch ramp comes to a batch of {odd[0]} rows, which {self.world.size} processes can't share equally. Set "
                f"train.batch_ramp.multiple to the number of processes, or train with a number that divides it."
            )

    @property
    def out_of_time(self) -> bool:
        """Whether a budget in hours is used up, by this process's clock."""
        return self.run.train.budget.out_of_time(self.meter.seconds)

    # ---- one step -----------------------------------------------------------------------------------

    def train_step(self) -> None:
        """One optimiser step on one global batch."""
        step, loader = self.state.step, self.state.loader
        if (rows := self.course.rows(step)) != loader.batch_rows:
            loader.set_batch_rows(rows)
        with self.meter.waiting():
            batch = next(loader)
        self.meter.due(self._recorded(step + 1))
        with self.meter.looking():
            self.stepper(batch)
        if self.first and self.run.impl.compile != "none":
            self.progress.say(compiling.first_step_note(self.meter.elapsed))
        if self.first:
            for said in filter(None, (self.attention, kernels_note())):
                self.progress.say(said)
        self.first = False
        self.profiler.step()

    def _recorded(self, step: int) -> bool:
        """Whether there is a record after so many steps."""
        return step % self.run.log.every == 0 or step == self.course.end

    # ---- around the steps ---------------------------------------------------------------------------

    def write_down(self) -> None:
        """Whatever is due after this step: a record, an evaluation, a checkpoint."""
        self.saver.check()  # a save in the background that failed ends the run here, not at the next save
        step, last = self.state.step, self.state.step == self.course.end
        if self._recorded(step):
            self._record()
        if self._recorded(step) or step % max(1, self.run.train.spikes.give_up // 4) == 0:  # it waits for the device
            self._give_up_if_lost()
        every = self.run.log.eval_every
        if self.run.data.heldout and every is not None and (last or self.course.due(every, step)):
            self._evaluate()
        if self._checkpoint_is_due(step):
            self.save()

    def _checkpoint_is_due(self, step: int) -> bool:
        every = self.run.log.checkpoint_every
        if every is None or every.seconds is None:
            return self.course.due(every, step)
        return self.world.any(time.perf_counter() - self.saved_when >= every.seconds)

    def save(self) -> None:
        """Begin to write a checkpoint, unless this step has one."""
        self.meter.tick()
        if self.saved_at != self.state.step:
            if self.log:
                self.log.flush()
            tokens = self.course.tokens(self.state.step)
            save(self.state, self.run, self.corpus, self.saver, tokens, self.world)
            self.saved_at, self.saved_when = self.state.step, time.perf_counter()
            self.meter.skip()  # nor is saving

    def finish(self) -> TrainResult:
        """Save the last state and say how it went."""
        state, course = self.state, self.course
        early = state.step < course.end
        interrupted = early and not self.world.any(self.out_of_time)
        unrecorded = course.tokens(state.step) > self.meter.tokens
        if early and not interrupted and unrecorded:
            self._record()
        self.save()
        self.saver.wait()
        where = f"at step {state.step:,} of {course.end:,}"
        if interrupted:
            self.progress.say(
                f"Stopped {where}; everything is saved in {self.run_dir}. The same command goes on from here."
            )
        elif early:
            hours = self.run.train.budget.hours
            self.progress.say(
                f"The budget of {hours:g} hours is used up {where}: the run ends there, within its schedule."
            )
        counts = state.guard.read()
        model = state.whole_model(self.world.main)
        model.attention_backend, model.recorded = "auto", False  # decoding from a cache is something else
        return TrainResult(
            model,
            self.run_dir,
            state.step,
            course.total,
            course.tokens(state.step),
            state.seconds,
            counts["not_finite"] + counts["outliers"],
            interrupted,
        )

    def close(self) -> None:
        """Release what the session holds, however it ends."""
        self.progress.close()
        self.state.loader.close()
        for held in ("saver", "profiler", "mirror", "log"):
            if getattr(self, held, None):
                getattr(self, held).close()

    def _record(self) -> None:
        """Write the means since the last record."""
        record = self.meter.record(
            tokens=self.course.tokens(self.state.step), params=self.course.params, norm=self.stepper.norm
        )
        self._publish(record)

    def _give_up_if_lost(self) -> None:
        """Raise `RunError` if too many steps in a row were skipped."""
        in_a_row = self.state.guard.read()["in_a_row"]
        if in_a_row < self.run.train.spikes.give_up:
            return
        self.saver.wait()
        before = checkpoint.newest_sound(self.run_dir)
        where = (
            f"{before} is the newest checkpoint from before: a branch (--branch-from) or a run of its own (train.init_from) goes on from it"
            if before is not None
            else "There is no checkpoint from before"
        )
        raise RunError(
            f"{in_a_row} steps in a row were skipped for their gradient, up to step {self.state.step} (train.spikes.give_up). {where}. Lower "
            f"the learning rate, or raise the warm-up."
        )

    def _evaluate(self) -> None:
        self.meter.tick()
        record = self.heldout.evaluate()
        self.state.heldout = (record["step"], record["heldout_bpb"])
        self._publish(record)
        self.meter.skip()  # evaluation is no training time

    def _publish(self, record: dict[str, Any]) -> None:
        if self.log:
            self.log.write(record)
        self.mirror.write(record)
        self.progress.update(record)
