"""One optimiser step on one global batch.

Forward and backward by micro-batches, clip, check on the device whether the gradient is sound, step. The host waits for the device
nowhere here.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slm.data.loader import Batch
from slm.model.precision import autocast
from slm.train.course import Course
from slm.train.optim import set_rate
from slm.train.optim.steps.shards import local, whole
from slm.train.parallel.world import World
from slm.train.recording import CudaRecorder, Inputs, Recorded, Sums

if TYPE_CHECKING:
    from slm.run import Run
    from slm.train.measure import Meter
    from slm.train.state import TrainState


class Stepper:
    """Takes a run's steps. ``norm``: of the last step's gradient before clipping, a device scalar."""

    def __init__(self, state: "TrainState", run: "Run", world: World, course: Course, meter: "Meter") -> None:
        self.state, self.run, self.world, self.course, self.meter = state, run, world, course, meter
        self.norm = torch.zeros(())
        self.recorded = Recorded(CudaRecorder(world.device)) if run.impl.cuda_graphs else None

    def __call__(self, batch: Batch) -> None:
        """Take a step. ``batch``: this process's share of the global one."""
        state, run = self.state, self.run
        counted = (batch.targets_BT != -100).sum()
        targets = self.world.sum(counted.to(state.sums.device, state.sums.dtype, non_blocking=True))
        micro = list(batch.split(run.impl.micro_batch or len(batch.tokens_BT)))
        for part in micro[:-1]:
            with state.spread.accumulating() if self.world.size > 1 else nullcontext():
                self._forward_backward(part, targets)
        self._forward_backward(micro[-1], targets)
        self.meter.gradients(state)
        self.norm = self._clip()
        bad = state.guard.check(self.norm)
        set_rate(state.optimizers, self.course.rate(state.step))
        for optimizer in state.optimizers:
            optimizer.found_inf, optimizer.grad_scale = bad, None  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=self.recorded is None)
        if state.ema is not None:
            state.ema.update(bad)
        state.step += 1

    def _forward_backward(self, batch: Batch, targets: Tensor) -> None:
        """Add the gradient of the loss per target of the *global* batch; processes are averaged, hence the factor."""
        with autocast(self.world.device, self.run.train.precision):
            inputs = self.state.objective.inputs(batch.to(self.world.device))
        factor = self.world.size / targets
        if self.recorded is None:
            nll, kl = self._pass(inputs, factor)
        else:
            nll, kl = self.recorded(self._pass, inputs, factor, watched=self.meter.watching)
        self.meter.count(batch, nll, kl)

    def _pass(self, inputs: Inputs, factor: Tensor) -> Sums:
        with autocast(self.world.device, self.run.train.precision):
            loss, nll, kl = self.state.spread.module(*inputs)
        (loss * factor.to(loss.dtype)).backward()
        return nll.detach(), kl.detach()

    def _clip(self) -> Tensor:
        """Scale the gradients down to ``train.clip``; returns the norm that they had."""
        grads = [p.grad for p in self.state.model.parameters() if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(grads))
        torch._foreach_mul_([local(g) for g in grads], (self.run.train.clip / (norm + 1e-6)).clamp(max=1.0))
        return norm
