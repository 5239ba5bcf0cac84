"""A schedule: a factor in [0, 1] on every group's peak rate, as a function of the step.

**Trunk and decay.** Up to `decay_start`, the factor doesn't depend on how long the run is; behind it, it does. So runs of several
lengths can share what comes before: one trunk is trained, and branches leave it (see `branch`). What the factors before
`decay_start` do depend on, `trunk` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from slm.config.durations import Duration, InSteps
from slm.config.registry import Part, Registry


@dataclass(frozen=True)
class Length:
    """How long a run is, and what turns durations into steps."""

    total: int
    """Optimiser steps."""
    batch_tokens: int
    params: int

    def steps(self, duration: Duration) -> int:
        """A duration in steps. Raises `ConfigError` for a time."""
        return duration.to_steps(batch_tokens=self.batch_tokens, params=self.params, total_steps=self.total)


class SchedulePart(Part):
    """A learning-rate schedule."""

    warmup: InSteps = Duration.parse("2%")
    """Linear ramp from 0 at the start."""

    def factor(self, step: int, *, total: int, batch_tokens: int, params: int) -> float:
        """Factor on the peak learning rate for 0-based ``step`` of ``total``.

        Raises:
            ConfigError: the schedule doesn't fit a run of this length.
        """
        length = Length(total, batch_tokens, params)
        warmup = length.steps(self.warmup)
        ramp = (step + 1) / (warmup + 1) if step < warmup else 1.0
        return min(ramp, self.after_warmup(step, warmup, length))

    def after_warmup(self, step: int, warmup: int, length: Length) -> float:
        """The factor without the ramp; at steps of the warm-up as well."""
        raise NotImplementedError

    def decay_start(self, *, total: int, batch_tokens: int, params: int) -> int:
        """First 0-based step whose factor depends on the run's length, given how many steps the warm-up has; ``total`` if none."""
        raise NotImplementedError

    def trunk(self, *, total: int, batch_tokens: int, params: int) -> tuple[Any, ...]:
        """What the factors before `decay_start` depend on: schedules with equal trunks have equal factors until either's."""
        length = Length(total, batch_tokens, params)
        return ("constant", length.steps(self.warmup))


schedule = Registry("schedule", SchedulePart)
ScheduleSlot = Annotated[SchedulePart, schedule.field()]
