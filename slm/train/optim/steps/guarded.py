"""What slm's own optimisers share: steps that can be called off on the device, state that is all tensors, shards.

**Called off.** A step whose gradient is bad (not finite, or an outlier) must change nothing, weights and state alike. The trainer
knows whether it is bad only on the device, and the host must not wait. So `step` reads ``found_inf``, a device scalar
(torch's own convention for gradient scaling), and multiplies what it is about to add by ``keep = 1 - found_inf``. Since
0 * nan is nan (and the square of a huge gradient is not finite), bad gradients are zeroed first. `step` may overwrite gradients:
they are spent.

**State.** Every entry of ``optimizer.state[p]`` is a tensor, so that a checkpoint holds it all; a sharded parameter's state is
sharded like it. It starts at the parameter's first step, or for all of them with `init_state` (before a sharded checkpoint is read
into it).

**Two sets of weights.** An optimiser that trains other weights than those to be used (schedule-free) has `eval_mode` and
`train_mode`. The trainer wraps evaluations and checkpoints in `evaluation_weights`, and calls `training_weights` after it resumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from slm.train.optim.steps.shards import local

Keep = Tensor | float
"""1 for a step that counts, 0 for one that is called off."""


class GuardedOptimizer(torch.optim.Optimizer):
    """Base of the optimisers that are written here. Subclasses say what a group's step does and how a state starts."""

    found_inf: Tensor | None = None
    """Set by the trainer: 1.0 makes `step` a no-op, decided on the device."""
    grad_scale: Tensor | None = None
    """Part of torch's convention; gradients are never scaled here."""

    def fresh(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """State of a parameter before its first step."""
        raise NotImplementedError

    def step_group(self, group: dict[str, Any], params: list[Tensor], keep: Keep) -> None:
        """Update the parameters of a group, all of which have a gradient."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        keep: Keep = 1.0 if self.found_inf is None else 1.0 - self.found_inf.reshape(())
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self.step_group(group, params, keep)

    @torch.no_grad()
    def init_state(self) -> None:
        """State of every parameter, as before the first step; what is there already stays."""
        for group in self.param_groups:
            for p in group["params"]:
                self.state_of(p, group)

    def state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """A parameter's state, made if there is none."""
        state = self.state[p]
        if not state:
            state.update(self.fresh(p, group))
        return state  # type: ignore[no-any-return]

    def moments(self, group: dict[str, Any], params: Sequence[Tensor], key: str) -> list[Tensor]:
        """This process's part of a state tensor of each parameter."""
        return [local(self.state_of(p, group)[key]) for p in params]

    def grads(self, params: Sequence[Tensor]) -> list[Tensor]:
        """This process's part of each gradient, zeros if the step is called off."""
        found = [local(p.grad) for p in params if p.grad is not None]
        if self.found_inf is not None:
            bad = self.found_inf.reshape(()) > 0
            for grad in found:
                grad.masked_fill_(bad, 0.0)
        return found


def clock(p: Tensor) -> Tensor:
    """A count of steps that are not called off: a scalar on the parameter's device, whole numbers to 2^24."""
    return torch.zeros((), dtype=torch.float32, device=p.device)


def debias(beta: float, steps: Tensor) -> Tensor:
    """1 - beta^steps, accurate in fp32 also where beta is near 1; at 0 steps as at 1 (nothing is divided by zero)."""
    if beta == 0:
        return torch.ones_like(steps)
    return -torch.expm1(steps.clamp(min=1) * math.log(beta))


def blend(mean: Tensor, new: Tensor, share: Keep) -> None:
    """mean <- (1 - share) mean + share new, in place and in one pass."""
    if isinstance(share, Tensor):
        mean.lerp_(new, share.to(mean.dtype))
    else:
        mean.lerp_(new, share)


def take(p: Tensor, direction: Tensor, size: float, keep: Keep) -> None:
    """p <- p - size keep direction, in place and in one pass."""
    if isinstance(keep, Tensor):
        p.addcmul_(direction, keep.to(p.dtype), value=-size)
    else:
        p.add_(direction, alpha=-size * keep)


def adam_direction(
    grad: Tensor, state: dict[str, Tensor], group: dict[str, Any], keep: Keep, square: Tensor | None = None
) -> Tensor:
    """Adam's direction for this gradient, and its moments brought up to date.

    ``state`` holds local tensors ``exp_avg``, ``exp_avg_sq`` and the count ``step``; ``square`` replaces the squared gradient
    (Adam-mini's row means).
    """
    (beta1, beta2), m, v = group["betas"], state["exp_avg"], state["exp_avg_sq"]
    state["step"].add_(keep)
    blend(m, grad, (1 - beta1) * keep)
    blend(v, grad.square() if square is None else square, (1 - beta2) * keep)
    denominator = (v / debias(beta2, state["step"])).sqrt_().add_(group["eps"])
    return (m / debias(beta1, state["step"])).div_(denominator)


def descend(p: Tensor, direction: Tensor, group: dict[str, Any], keep: Keep, rate: float = 1.0) -> None:
    """p <- p - lr (rate direction + weight_decay p), in place.

    With ``cautious`` in the group, weights decay only where the step moves them towards zero as well (Chen et al. 2025,
    arXiv 2510.12402), so that decay never works against the loss.
    """
    lr, decay = group["lr"], group["lr"] * group["weight_decay"]
    if decay and group.get("cautious"):
        take(p, torch.where(direction * p >= 0, p, 0.0), decay, keep)
    elif decay:
        p.mul_(1 - decay * keep)
    take(p, direction, lr * rate, keep)


def init_state(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Make the state of every parameter exist, so that a checkpoint can be read into it."""
    for optimizer in optimizers:
        optimizer.init_state()  # type: ignore[attr-defined]


def training_weights(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Have the weights in the model that the next step trains. Call it after a resume; it changes nothing if they are there."""
    for optimizer in optimizers:
        if hasattr(optimizer, "train_mode"):
            optimizer.train_mode()


def final_weights(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Have the weights in the model that are to be used, for good: training is over."""
    for optimizer in optimizers:
        if hasattr(optimizer, "eval_mode"):
            optimizer.eval_mode()


@contextmanager
def evaluation_weights(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[None]:
    """Have the weights in the model that are to be used: for evaluations, and for what a checkpoint calls the model's weights.
    Afterwards the trained weights are back, bit for bit."""
    optimizers = list(optimizers)
    try:
        for optimizer in optimizers:
            if hasattr(optimizer, "eval_mode"):
                optimizer.eval_mode()
        yield
    finally:
        training_weights(optimizers)
