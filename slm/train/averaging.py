"""Averages of weights: running ones while training (`Ema`), and of checkpoints (`average_weights`).

Averages behave as if the rate had been lowered: the noise of single steps is gone, at no cost to the training itself, which never sees
them (Morales-Brotons et al. 2024, arXiv 2411.18704; Sanyal et al. 2023, arXiv 2306.03241). They show early what a decay would bring, and are no
substitute for one at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Self

import pydantic

from slm.config.base import Config
from slm.config.durations import InSteps
from slm.config.errors import ConfigError, RunError

if TYPE_CHECKING:
    from torch import Tensor


class Averaging(Config):
    """An exponential moving average of the weights: its half-life or its decay."""

    exclusive: ClassVar = (("half_life", "decay"),)

    half_life: InSteps | None = None
    """Tokens, steps or a share of the budget until a step counts half; the same average at every batch size."""
    decay: float | None = pydantic.Field(None, gt=0, lt=1)
    """What is left of the average at each step."""

    @pydantic.model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.half_life is None) == (self.decay is None):
            raise ConfigError("train.ema needs exactly one of half_life and decay.")
        return self

    def per_step(self, *, total: int, batch_tokens: int, params: int) -> float:
        """What is left of the average at each step."""
        if self.decay is not None:
            return self.decay
        assert self.half_life is not None
        per = {"steps": 1.0, "tokens": batch_tokens, "tokens_per_param": batch_tokens / params, "%": 100 / total}
        if self.half_life.value <= 0:
            raise ConfigError(f"train.ema.half_life={self.half_life}: it must be more than nothing.")
        return float(0.5 ** (per[self.half_life.unit] / self.half_life.value))


class Ema:
    """A running average of some tensors, as if it had begun with the first of them: no start value is left in it.

    Sharded weights have a sharded average. Nothing here waits for the device.
    """

    def __init__(self, weights: Mapping[str, "Tensor"], decay: float) -> None:
        import torch

        self.weights, self.decay = dict(weights), decay
        self.average = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in self.weights.items()}
        any_weight = next(iter(self.weights.values()))
        self.updates = torch.zeros((), dtype=torch.float32, device=any_weight.device)

    def update(self, skipped: "Tensor | float" = 0.0) -> None:
        """Take the weights in after a step; not if it was called off (``skipped`` is 1)."""
        import torch

        from slm.train.optim.steps.shards import local

        with torch.no_grad():
            keep = 1.0 - skipped
            self.updates += keep
            # weights of the updates so far sum to 1 - decay^n; the newest has 1 - decay of it
            share = (1 - self.decay) / -torch.expm1(self.updates.clamp(min=1) * math.log(self.decay)) * keep
            for name, weight in self.weights.items():
                average = local(self.average[name])
                average.add_((local(weight.detach()) - average).mul_(share))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Have the averages in the model, then the weights again, bit for bit. Before the first update it changes nothing."""
        if not float(self.updates):
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, "Tensor"]:
        """Tensors for a checkpoint: ``<weight>/ema`` for each, and ``updates``."""
        return {f"{name}/ema": t for name, t in self.average.items()} | {"updates": self.updates}

    def restore(self, tensors: Mapping[str, "Tensor"]) -> None:
        """Take back what `state` gave. Raises `RunError` naming what is missing or of another shape."""
        for key, own in self.state().items():
            if key not in tensors or tensors[key].shape != own.shape:
                raise RunError(
                    f"The checkpoint has no moving average {key!r} that fits: train.ema was set after it was written. Start "
                    f"another run, or leave train.ema as it was."
                )
            own.copy_(tensors[key])

    def _swap(self) -> None:
        """Exchange weights and averages, with the memory of one tensor."""
        import torch

        from slm.train.optim.steps.shards import local

        with torch.no_grad():
            for name, weight in self.weights.items():
                w, average = local(weight.detach()), local(self.average[name])
                held = w.clone()
                w.copy_(average)
                average.copy_(held)


def average_weights(
    checkpoints: Iterable[Mapping[str, "Tensor"]], shares: Sequence[float] | None = None
) -> dict[str, "Tensor"]:
    """The mean of some models' weights, by name; ``shares`` weigh them (any positive numbers; None: all alike).

    Read one at a time: give a generator that loads them. Sums are kept in fp64, the result has the type of the first model's weights.

    Raises:
        ConfigError: no checkpoint; another number of shares.
        RunError: a checkpoint's weights have other names or shapes than the first one's.
    """
    import torch

    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    total, count = 0.0, 0
    for count, weights in enumerate(checkpoints, 1):
        if shares is not None and count > len(shares):
            break
        share = 1.0 if shares is None else shares[count - 1]
        if count == 1:
            dtypes = {name: w.dtype for name, w in weights.items()}
            sums = {name: torch.zeros(w.shape, dtype=torch.float64) for name, w in weights.items()}
        odd = sorted(sums.keys() ^ weights.keys()) or sorted(n for n in sums if sums[n].shape != weights[n].shape)
        if odd:
            raise RunError(f"Checkpoint {count} doesn't fit the first one; first difference: {odd[0]!r}.")
        for name, w in weights.items():
            sums[name] += w.to("cpu", torch.float64) * share
        total += share
    if not count or (shares is not None and (count != len(shares) or min(shares) <= 0)):
        raise ConfigError(f"Averaging needs checkpoints, and as many positive shares: got {count}, and {shares}.")
    return {name: (t / total).to(dtypes[name]) for name, t in sums.items()}


def shares_of_decay(shape: str, count: int) -> list[float]:
    """Shares with which an average of ``count`` checkpoints of a constant rate, oldest first, imitates a decay over their span.

    What a step moved is in all checkpoints behind it, so in the average it counts as the sum of their shares: to have a factor f(x) at x,
    the shares are the differences of f (Tian et al. 2025, "WSM: Decay-free learning rate schedule via checkpoint merging",
    arXiv 2507.17634).
    """
    from slm.train.schedule.shapes import fall

    if shape not in ("linear", "1-sqrt", "cosine"):
        raise ConfigError(f"There is no decay {shape!r} to imitate; use linear, 1-sqrt or cosine.")
    factors = [fall(shape, i / count, 0.0) for i in range(count + 1)]  # type: ignore[arg-type]
    return [a - b for a, b in itertools.pairwise(factors)]
