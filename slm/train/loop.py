"""The training loop, top to bottom.

Build, resume, then for each step: a batch, the step (`slm.train.step`), and whatever is due: a record, an evaluation, a checkpoint. The
host waits for the device only where something is written down.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slm import checkpoint
from slm.config.errors import ConfigError, RunError
from slm.config.identity import differences
from slm.data.corpus import Corpus
from slm.data.loader import Loader
from slm.data.plan import Horizon
from slm.data.plan.of_corpus import plan_of
from slm.model.attention.routing import explain, told
from slm.model.decoder import Decoder
from slm.model.precision import product_dtype
from slm.train import compiling
from slm.train.branching import branch_point, inherit_metrics
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
from slm.train.rundir import claimed, run_dir_of
from slm.train.signals import StopRequest
from slm.train.state import TrainState, build, newest, resume, save
from slm.train.step import Stepper

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
        costs = run.model.costs()
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
        loader = Loader(plan, self.course.batches.rows[-1], rank=world.rank, world=world.size, say=progress.say)
        self.attention = told(explain(
            run.impl.attention, run.model, world.device, product_dtype(run.train.precision),
            run.data.seq_len, graph=run.impl.compile != "none" or run.impl.cuda_graphs,
        ))  # fmt: skip
        self.state: TrainState = build(run, corpus, loader, self.course, world)
        token_bytes_V = torch.from_numpy(corpus.tokenizer.token_bytes)
        self.meter = Meter(run, costs, world, token_bytes_V, self.state)
        self.heldout = Heldout(run, corpus, world, token_bytes_V, self.state)
        self.stepper = Stepper(self.state, run, world, self.course, self.meter)
        self.saved_at, self.first = -1, True

    def start(self) -> None:
        """Resume, open the records."""
        state, run, main, say = self.state, self.run, self.world.main, self.progress.say
        said, resumed_from = self._take_up()
        self._check_sizes()
        keep, every = run.log.keep, run.log.keep.every
        self.saver = checkpoint.Saver(
            self.run_dir, keep, self.world, stretch=partial(self.course.stretch, every) if every else None,
            spare=resumed_from, asynchronous=run.log.checkpoint_async,
        )  # fmt: skip
        self.log = MetricsLog(self.run_dir / "metrics.jsonl", state.step) if main else None
        self.mirror = Mirrors.of(run, self.run_dir, state.step, say) if main else Mirrors({}, say)
        self.profiler = profiler(run.log.profile, self.run_dir / "profile", self.world, say)
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

    def _take_up(self) -> tuple[list[str], Path | None]:
        """Go on from this run's newest checkpoint, or from a branch's trunk. Returns what there is to say, and this run's checkpoint."""
        state, run = self.state, self.run
        of = f"step {{:,}} of {self.course.total:,}"
        found = newest(self.run_dir, self.world, consent=run.log.resume == "latest-valid", say=self.progress.say)
        if found is not None:
            resume(state, found, self.world)
            self.saved_at = state.step
            return [
                f"Resumed from {of.format(state.step)} in {self.run_dir}",
                *self._executed_differently(found),
            ], found
        if run.train.branch is None:
            return [], None
        point = branch_point(run)
        resume(state, point, self.world, rows_before=self.course.batches.rows_before)
        if self.world.main:
            self._pin(point)
            inherit_metrics(self.run_dir, point, state.step)
        return [f"Branches from {point} at {of.format(state.step)}", *self._executed_differently(point)], None

    def _pin(self, point: Path) -> None:
        """Have the trunk keep what this run began with; a trunk on a disk that can't be written to is no reason not to branch."""
        try:
            checkpoint.pin(point, f"{self.run_dir} branches from it")
        except RunError as error:
            self.progress.say(f"{error} The branch begins all the same.")

    def _executed_differently(self, found: Path) -> list[str]:
        """What of ``impl`` is another than when a checkpoint was written. It is allowed, and said."""
        old = checkpoint.describe(found)[0].get("impl", {})
        changed = differences({"impl": old}, {"impl": self.run.model_dump(mode="json")["impl"]})
        return [f"Executed differently from here on: {'; '.join(changed)}"] if changed else []

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
        every = self.run.log.eval_every
        if self.run.data.heldout and every is not None and (last or self.course.due(every, step)):
            self._evaluate()
        if self.course.due(self.run.log.checkpoint_every, step):
            self.save()

    def save(self) -> None:
        """Begin to write a checkpoint, unless this step has one."""
        self.meter.tick()
        if self.saved_at != self.state.step:
            if self.log:
                self.log.flush()
            tokens = self.course.tokens(self.state.step)
            save(self.state, self.run, self.corpus, self.saver, tokens, self.world)
            self.saved_at = self.state.step
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
        model.attention_backend = "auto"  # what fits training rows may not fit decoding from a cache
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
        if record["skipped_in_a_row"] >= self.run.train.spikes.give_up:
            raise RunError(
                f"{record['skipped_in_a_row']} steps in a row were skipped for their gradient, up to step {record['step']}. "
                f"Lower the learning rate or raise the warm-up; the last checkpoint in {self.run_dir} is from before."
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
