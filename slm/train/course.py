"""The course of a run: how many steps, which rows and how many tokens each of them has, and at which rate.

All of it follows from the config and the model's costs, before anything is spent; nothing of it depends on the machine. With a batch
ramp, budget and schedule are still those of a run with full batches ("steps" in them are full ones): the rate at a step is that run's at
the same number of tokens, and the tokens are the same in all; there are only more steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slm.config.durations import Duration
from slm.config.errors import ConfigError
from slm.train.budget import Resolved
from slm.train.schedule import BatchPlan, SchedulePart

if TYPE_CHECKING:
    from slm.cost.cost import ModelCost
    from slm.run import Run


@dataclass(frozen=True)
class Course:
    """Steps of a run. ``batch_tokens``: of a full batch; ``params``: stored ones."""

    batches: BatchPlan
    schedule: SchedulePart
    batch_tokens: int
    params: int
    until: int | None = None
    """Step at which a stage of a longer run ends."""

    @classmethod
    def of(cls, run: "Run", costs: "ModelCost") -> "Course":
        """The course of a run.

        Raises:
            ConfigError: a schedule or a ramp that doesn't fit the budget.
        """
        train, seq_len, params = run.train, run.data.seq_len, costs.params["unique"]
        steps = train.budget.total_steps(costs, train.batch_tokens)
        if train.batch_ramp is None:
            batches = BatchPlan(seq_len, steps, (0,), (0,), (train.batch_tokens // seq_len,))
        else:
            sizes = {"seq_len": seq_len, "batch_tokens": train.batch_tokens, "params": params}
            batches = train.batch_ramp.plan(steps * train.batch_tokens, **sizes)
        if train.until is not None and train.until > batches.total_steps:
            raise ConfigError(
                f"train.until={train.until:,} is beyond the run's {batches.total_steps:,} steps. Leave it out to train them all; train.budget says how many "
                f"there are."
            )
        course = cls(batches, train.schedule, train.batch_tokens, params, train.until)
        course.rate(0)
        return course

    @property
    def total(self) -> int:
        """Optimiser steps."""
        return self.batches.total_steps

    @property
    def end(self) -> int:
        """Where training ends: after all steps, or those of a stage."""
        return min(self.total, self.until or self.total)

    @property
    def total_rows(self) -> int:
        """Rows that are read."""
        return self.batches.rows_before(self.total)

    def tokens(self, step: int) -> int:
        """Tokens read before a 0-based step; after ``step`` steps, that is."""
        return self.batches.tokens_before(step)

    def rows(self, step: int) -> int:
        """Rows of the batch of a 0-based step."""
        return self.batches.rows_of(step)

    def rate(self, step: int) -> float:
        """Factor on every peak learning rate at a 0-based step."""
        at, total = (self._full(step), max(1, self._full(self.total))) if self.ramped else (step, self.total)
        return self.schedule.factor(at, total=total, batch_tokens=self.batch_tokens, params=self.params)

    @property
    def ramped(self) -> bool:
        """Whether batches grow on the way."""
        return len(self.batches.rows) > 1

    def steps(self, length: Duration | None) -> int:
        """A duration in full batches, at least 1; 0 for None, which is never."""
        if length is None:
            return 0
        total = self._full(self.total) if self.ramped else self.total
        return max(1, length.to_steps(batch_tokens=self.batch_tokens, params=self.params, total_steps=total))

    def at(self, length: Duration) -> int:
        """Steps after which so much has been read."""
        if not length.value:
            return 0
        full = self.steps(length)
        return full if not self.ramped else self.batches.step_of(full * self.batch_tokens // self.batches.seq_len)

    def due(self, every: Duration | None, step: int) -> bool:
        """Whether, after ``step`` steps, another stretch of this length is full."""
        full = self.stretches(every)
        return full is not None and full(step) > full(step - 1)

    def stretches(self, every: Duration | None) -> Callable[[int], int] | None:
        """Counts the stretches of this length that are full after so many steps; None for None, which is never.

        Raises:
            ConfigError: the length has no steps.
        """
        if every is None:
            return None
        steps = self.steps(every)
        return (
            (lambda step: self.tokens(step) // (steps * self.batch_tokens))
            if self.ramped
            else lambda step: step // steps
        )

    def within(self, rows: int | None) -> "Course":
        """The course as far as ``rows`` rows reach."""
        if rows is None or rows >= self.total_rows:
            return self
        low, high = 0, self.total
        while low < high:  # the most steps whose rows are there
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.batches.rows_before(middle) <= rows else (low, middle - 1)
        return replace(self, batches=self.batches.cut(low))

    def _full(self, step: int) -> int:
        """Full batches in the tokens before a step."""
        return self.tokens(step) // self.batch_tokens


def resolved(course: Course, model: "ModelCost") -> Resolved:
    """A course's length in all units."""
    tokens = course.tokens(course.total)
    return Resolved(course.total, tokens, model.flops_per_token["train"] * tokens, tokens / model.params["unique"])
