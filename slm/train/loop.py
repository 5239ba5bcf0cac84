"""The training loop, top to bottom.

Build, resume, then for each step: batch, forward and backward, clip, check on the device that the gradient
is finite, step; then records, evaluation and checkpoints. The host waits for the device only where
something is written down.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slm.config.durations import Duration
from slm.config.errors import RunError
from slm.cost.device import peak_flops
from slm.data.corpus import Corpus
from slm.data.loader import Batch, Loader, make_batch
from slm.data.plan import Horizon, Plan
from slm.data.plan.of_corpus import plan_of
from slm.eval.rows import bits_per_byte, row_sums
from slm.model.decoder import Decoder
from slm.model.precision import autocast
from slm.train.distill.loss import loss_module
from slm.train.metrics import MetricsLog
from slm.train.mirror import Mirror
from slm.train.optim import set_rate
from slm.train.optim.steps import evaluation_weights, final_weights, training_weights
from slm.train.parallel import World
from slm.train.progress import Silent, TrainProgress
from slm.train.rundir import claimed, run_dir_of
from slm.train.signals import StopRequest
from slm.train.state import TrainState, build, resume, save

if TYPE_CHECKING:
    from slm.run import Run


EVAL_ROWS = 16
"""Rows per forward pass of an evaluation."""


@dataclass(frozen=True)
class TrainResult:
    """How training ended. ``interrupted``: asked to stop before the budget was used up."""

    model: Decoder
    run_dir: Path
    step: int
    total_steps: int
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
        session = Session(run, corpus, world, run_dir, progress)
        stack.callback(session.close)
        session.start()
        while session.state.step < session.total and not world.any(stop.requested):
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
        self.params, self.cost, self.palm = costs.params["unique"], costs.total, costs.flops_per_token["train_palm"]
        self.total = run.train.budget.total_steps(costs, run.train.batch_tokens)
        rows = run.train.batch_tokens // run.data.seq_len
        plan = plan_of(corpus, run.data, horizon=Horizon(self.total * rows, rows, self.params))
        if plan.limit is not None and plan.limit < self.total * rows:
            self.total = plan.limit // rows  # data.on_exhaust=stop: a source ends before the budget does
            progress.say(
                f"A source is used up after {self.total:,} steps, and data.on_exhaust=stop: the run ends there."
            )
        loader = Loader(plan, rows, rank=world.rank, world=world.size, say=progress.say)
        self.state: TrainState = build(run, corpus, loader, world)
        self.token_bytes = torch.from_numpy(corpus.tokenizer.token_bytes)
        self.peak = peak_flops(torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None)
        self.rate(0)  # a schedule that doesn't fit the budget is refused before anything is spent
        self.eval_every = self._steps(run.log.eval_every) if run.data.heldout else 0
        self.save_every = self._steps(run.log.checkpoint_every)
        self.last_norm = torch.zeros(())
        self.saved_at = -1

    def start(self) -> None:
        """Resume, open the records, wrap the model."""
        state, run = self.state, self.run
        resumed = resume(state, self.run_dir, self.world)
        training_weights(state.optimizers)
        self.saved_at = state.step if resumed else -1
        self.log = MetricsLog(self.run_dir / "metrics.jsonl", state.step) if self.world.main else None
        wandb = run.log.wandb if self.world.main else type(run.log.wandb)()
        self.mirror = Mirror(wandb, self.run_dir, run.name, run.identity, run.experiment(), self.progress.say)
        self.objective = loss_module(run, state.model, self.corpus, state.loader.plan, self.total)
        module: nn.Module = self.objective
        if run.impl.compile:
            module = torch.compile(module)  # type: ignore[assignment]
        self.module = self.world.wrap(module)
        self.progress.start(f"Training {run.name}", state.step, self.total)
        if resumed:
            self.progress.say(f"Resumed from step {state.step:,} of {self.total:,} in {self.run_dir}")
        self.state.model.train()
        self.clock, self.since_record, self.record_step = time.perf_counter(), 0.0, state.step

    # ---- one step -----------------------------------------------------------------------------------

    def train_step(self) -> None:
        """One optimiser step on one global batch."""
        state, run = self.state, self.run
        batch = next(state.loader)
        targets = self.world.sum((batch.targets_BT != -100).sum().to(self.state.sums))
        micro = list(batch.split(run.impl.micro_batch or len(batch.tokens_BT)))
        for i, part in enumerate(micro):
            last = i == len(micro) - 1
            with nullcontext() if last or self.world.size == 1 else self.module.no_sync():  # type: ignore[operator]
                self._forward_backward(part, targets)
        parameters = [p for p in state.model.parameters() if p.grad is not None]
        grads = [p.grad for p in parameters if p.grad is not None]
        self.last_norm = torch.nn.utils.get_total_norm(grads)
        torch._foreach_mul_(grads, (run.train.clip / (self.last_norm + 1e-6)).clamp(max=1.0))
        bad = (~torch.isfinite(self.last_norm)).float()  # stays on the device: optimisers skip where it is 1
        state.skipped += bad
        set_rate(state.optimizers, self.rate(state.step))
        for optimizer in state.optimizers:
            optimizer.found_inf, optimizer.grad_scale = bad, None  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state.step += 1

    def _forward_backward(self, batch: Batch, targets: Tensor) -> None:
        """Add the gradient of the loss per target of the *global* batch; DDP averages, hence the factor."""
        device = self.world.device
        size = self.token_bytes[batch.targets_BT.clamp(min=0)].where(batch.targets_BT >= 0, 0).sum()
        counted = torch.stack([(batch.targets_BT >= 0).sum(), size, self._attended(batch)])
        b = batch.to(device)
        with autocast(device, self.run.train.precision):
            loss, nll, kl = self.module(*self.objective.inputs(b))
        (loss * (self.world.size / targets).to(loss.dtype)).backward()
        self.state.sums += torch.cat([nll.detach()[None], counted.to(device), kl[None]]).to(self.state.sums.dtype)

    def _attended(self, batch: Batch) -> Tensor:
        """FLOPs that the batch's counted tokens spend on the keys they attend to: causal, within windows and documents."""
        keys = (batch.positions_BT + 1).where(batch.targets_BT >= 0, 0)
        seen = [f * (keys if w is None else keys.clamp(max=w)).sum() for w, f in self.cost.flops_per_key.items()]
        return sum(seen, torch.zeros(())).to(torch.float64)

    def rate(self, step: int) -> float:
        """Factor on every peak learning rate at a 0-based step."""
        return self.run.train.schedule.factor(
            step, total=self.total, batch_tokens=self.run.train.batch_tokens, params=self.params
        )

    # ---- around the steps ---------------------------------------------------------------------------

    def write_down(self) -> None:
        """Whatever is due after this step: a record, an evaluation, a checkpoint."""
        step, last = self.state.step, self.state.step == self.total
        if step % self.run.log.every == 0 or last:
            self._record()
        if self.eval_every and (step % self.eval_every == 0 or last):
            self._evaluate()
        if self.save_every and step % self.save_every == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, unless this step has one."""
        self._tick()
        if self.saved_at != self.state.step:
            if self.log:
                self.log.flush()
            with evaluation_weights(self.state.optimizers):
                save(self.state, self.run, self.corpus, self.run_dir, self.world)
            self.saved_at = self.state.step
            self.world.barrier()

    def finish(self) -> TrainResult:
        """Save the last state and say how it went."""
        state = self.state
        self.save()
        final_weights(state.optimizers)
        interrupted = state.step < self.total
        if interrupted:
            self.progress.say(
                f"Stopped at step {state.step:,} of {self.total:,}; everything is saved in {self.run_dir}. "
                f"The same command goes on from here."
            )
        return TrainResult(
            state.model, self.run_dir, state.step, self.total, state.seconds, int(state.skipped), interrupted
        )

    def close(self) -> None:
        """Release what the session holds, however it ends."""
        self.progress.close()
        self.state.loader.close()
        if getattr(self, "mirror", None):
            self.mirror.close()
        if getattr(self, "log", None):
            self.log.close()  # type: ignore[union-attr]

    def _record(self) -> None:
        """Write the means since the last record."""
        state, run = self.state, self.run
        nll, targets, size, attended, kl = self.world.sum(state.sums.clone()).tolist()
        state.sums.zero_()
        self._tick()
        speed = (state.step - self.record_step) * run.train.batch_tokens / self.since_record
        self.record_step, self.since_record = state.step, 0.0
        record: dict[str, Any] = {
            "kind": "train",
            "step": state.step,
            "tokens": state.step * run.train.batch_tokens,
            "tokens_per_param": state.step * run.train.batch_tokens / self.params,
            "loss": nll / targets,
            "bpb": bits_per_byte(nll, size),
            **({"kl": kl / targets} if run.train.distill is not None else {}),
            "lr": state.optimizers[0].param_groups[0]["lr"],
            "grad_norm": float(self.last_norm),
            "tokens_per_s": speed,
            **self._mfu(speed, attended / targets),
            "skipped": int(state.skipped),
            "seconds": state.seconds,
        }
        self._publish(record)
        if record["loss"] != record["loss"]:
            raise RunError(
                f"The loss is not a number at step {state.step} ({record['skipped']} steps were skipped for it). "
                f"Lower the learning rate or raise the warm-up; the last checkpoint in {self.run_dir} is from before."
            )

    def _mfu(self, tokens_per_s: float, attended: float) -> dict[str, float | None]:
        """Share of the devices' peak: with the FLOPs of what was ``attended`` per token (causal, within windows and
        documents), and PaLM's way."""
        if self.peak is None:
            return {"mfu_causal": None, "mfu_palm": None}
        peak = self.peak * self.world.size
        return {
            "mfu_causal": 3 * (self.cost.flops + attended + self.cost.train_only) * tokens_per_s / peak,
            "mfu_palm": self.palm * tokens_per_s / peak,
        }

    @cached_property
    def heldout(self) -> dict[str, Plan]:
        """The held-out rows of each source, in an order of their own."""
        return {name: plan_of(self.corpus, self.run.data, "heldout", source=name) for name in self.corpus.stores}

    def _evaluate(self) -> None:
        """Bits per byte on the first held-out rows of each source, shared among the processes."""
        self._tick()
        self.state.model.eval()
        with evaluation_weights(self.state.optimizers):
            sums = {name: self._heldout_sums(plan) for name, plan in self.heldout.items()}
        self.state.model.train()
        nats, size = map(sum, zip(*sums.values(), strict=True))
        record = {"kind": "eval", "step": self.state.step, "heldout_bpb": bits_per_byte(nats, size)}
        if len(sums) > 1:
            record["heldout_bpb_by_source"] = {name: bits_per_byte(*own) for name, own in sums.items()}
        self._publish(record)
        self.clock = time.perf_counter()  # evaluation is no training time

    def _heldout_sums(self, plan: Plan) -> tuple[float, float]:
        """(nats, bytes) over the first held-out rows of a source."""
        mine = range(self.world.rank, min(self.run.log.eval_rows, plan.rows_per_epoch), self.world.size)
        batches = (make_batch(plan, mine[i : i + EVAL_ROWS]) for i in range(0, len(mine), EVAL_ROWS))
        sums = row_sums(self.state.model, batches, self.token_bytes, self.run.train.precision)
        nats, size = self.world.sum(torch.tensor(sums).to(self.state.sums)).tolist()
        return nats, size

    def _publish(self, record: dict[str, Any]) -> None:
        if self.log:
            self.log.write(record)
        self.mirror.write(record)
        self.progress.update(record)

    def _tick(self) -> None:
        """Book the time since the last call as training time."""
        now = time.perf_counter()
        self.state.seconds += now - self.clock
        self.since_record += now - self.clock
        self.clock = now

    def _steps(self, every: Duration | None) -> int:
        """A duration in steps, at least 1; 0 for never."""
        if every is None:
            return 0
        batch = self.run.train.batch_tokens
        return max(1, every.to_steps(batch_tokens=batch, params=self.params, total_steps=self.total))
