"""Learning-rate schedules: a factor in [0, 1] on every group's peak rate, as a function of the step."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from slm.config.durations import Duration
from slm.config.errors import ConfigError
from slm.config.registry import Part, Registry


class SchedulePart(Part):
    """A learning-rate schedule."""

    warmup: Duration = Duration.parse("2%")
    """Linear ramp from 0 at the start."""

    def factor(self, step: int, *, total: int, batch_tokens: int, params: int) -> float:
        """Factor on the peak learning rate for 0-based ``step`` of ``total``."""
        warmup = self.warmup.to_steps(batch_tokens=batch_tokens, params=params, total_steps=total)
        ramp = (step + 1) / (warmup + 1) if step < warmup else 1.0
        return min(ramp, self.after_warmup(step, warmup, total=total, batch_tokens=batch_tokens, params=params))

    def after_warmup(self, step: int, warmup: int, *, total: int, batch_tokens: int, params: int) -> float:
        raise NotImplementedError


schedule = Registry("schedule", SchedulePart)
ScheduleSlot = Annotated[SchedulePart, schedule.field()]


@schedule.register("wsd", paper="Hu et al. 2024 (MiniCPM), arXiv 2404.06395")
class WarmupStableDecay(SchedulePart):
    """Warm-up, a constant rate, then a decay over the last part of the budget."""

    decay: Duration = Duration.parse("20%")
    shape: Literal["linear", "1-sqrt", "cosine"] = "linear"
    floor: float = 0.0
    """Factor at the end."""

    def after_warmup(self, step: int, warmup: int, *, total: int, batch_tokens: int, params: int) -> float:
        decay = self.decay.to_steps(batch_tokens=batch_tokens, params=params, total_steps=total)
        if warmup + decay > total:
            raise ConfigError(
                f"train.schedule: warm-up ({warmup} steps) and decay ({decay} steps) together exceed the budget of "
                f"{total} steps. Shorten one of them, or give them as a share such as '5%'."
            )
        x = min(1.0, max(0.0, (step + 1 - (total - decay)) / (decay + 1)))  # the last step still moves the weights
        fall = {"linear": 1 - x, "1-sqrt": 1 - math.sqrt(x), "cosine": 0.5 * (1 + math.cos(math.pi * x))}[self.shape]
        return self.floor + (1 - self.floor) * fall


@schedule.register("cosine", paper="Loshchilov & Hutter 2017, arXiv 1608.03983")
class Cosine(SchedulePart):
    """Warm-up, then half a cosine down to ``floor``."""

    floor: float = 0.1

    def after_warmup(self, step: int, warmup: int, *, total: int, batch_tokens: int, params: int) -> float:
        x = min(1.0, max(0.0, (step - warmup) / max(1, total - warmup)))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * x))
