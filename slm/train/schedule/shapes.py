"""The schedules: what comes after the warm-up."""

from __future__ import annotations

import math
from typing import Any, Literal

import pydantic

from slm.config.base import Config
from slm.config.durations import Duration, InSteps
from slm.config.errors import ConfigError
from slm.train.schedule.base import Length, SchedulePart, schedule

Shape = Literal["linear", "1-sqrt", "cosine", "exponential"]


def fall(shape: Shape, x: float, floor: float) -> float:
    """From 1 at x = 0 to ``floor`` at x = 1."""
    if x <= 0:
        return 1.0  # exactly: what comes before a decay is not its business
    x = min(1.0, x)
    if shape == "exponential":
        return float(floor**x)
    rest = {"linear": 1 - x, "1-sqrt": 1 - math.sqrt(x), "cosine": 0.5 * (1 + math.cos(math.pi * x))}[shape]
    return floor + (1 - floor) * rest


class Decaying(SchedulePart):
    """A trunk that doesn't depend on the run's length, and a decay at the end."""

    decay: InSteps = Duration.parse("20%")
    """Length of the decay at the end; ``0 steps`` is a trunk without one."""
    shape: Shape = "linear"
    """How it falls. exponential: by the same factor at every step (MiniCPM); it needs a ``floor`` above 0."""
    floor: float = pydantic.Field(0.0, ge=0, le=1)
    """Factor at the end, on what the trunk has there."""

    @pydantic.model_validator(mode="after")
    def _reaches_its_floor(self) -> "Decaying":
        if self.shape == "exponential" and self.floor == 0:
            raise ConfigError("train.schedule: an exponential decay never reaches 0. Set a floor, such as 0.1.")
        return self

    def after_warmup(self, step: int, warmup: int, length: Length) -> float:
        decay = self._decay_steps(length)
        x = (step + 1 - (length.total - decay)) / (decay + 1)  # the last step still moves the weights
        return self.plateau(step, warmup, length) * fall(self.shape, x, self.floor)

    def plateau(self, step: int, warmup: int, length: Length) -> float:
        """The trunk's factor."""
        return 1.0

    def decay_start(self, *, total: int, batch_tokens: int, params: int) -> int:
        return total - self._decay_steps(Length(total, batch_tokens, params))

    def _decay_steps(self, length: Length) -> int:
        warmup, decay = length.steps(self.warmup), length.steps(self.decay)
        if warmup + decay > length.total:
            raise ConfigError(
                f"train.schedule: warm-up ({warmup} steps) and decay ({decay} steps) together exceed the budget of "
                f"{length.total} steps. Shorten one of them, or give them as a share such as '5%'."
            )
        return decay


@schedule.register("wsd", paper="Hu et al. 2024 (MiniCPM), arXiv 2404.06395; Hägele et al. 2024, arXiv 2405.18392")
class WarmupStableDecay(Decaying):
    """Warm-up, a constant rate, then a decay over the last part of the budget."""


@schedule.register("trapezoid", paper="Zhai et al. 2022, arXiv 2106.04560")
class Trapezoid(WarmupStableDecay):
    """Another name of wsd."""


@schedule.register("inverse_sqrt", paper="Vaswani et al. 2017, arXiv 1706.03762; Zhai et al. 2022, arXiv 2106.04560")
class InverseSqrt(Decaying):
    """Warm-up, then falling with the root of the step; a decay to the end if one is set."""

    decay: InSteps = Duration.parse("0 steps")
    """Length of the decay at the end; ``0 steps`` for none."""
    timescale: InSteps | None = None
    """So long after the warm-up the rate has fallen to 1 / sqrt(2). None: as long as the warm-up, the classic form."""

    def plateau(self, step: int, warmup: int, length: Length) -> float:
        scale = self._scale(warmup, length)
        return math.sqrt(scale / (scale + max(0, step - warmup)))

    def trunk(self, *, total: int, batch_tokens: int, params: int) -> tuple[Any, ...]:
        length = Length(total, batch_tokens, params)
        warmup = length.steps(self.warmup)
        return ("inverse_sqrt", warmup, self._scale(warmup, length))

    def _scale(self, warmup: int, length: Length) -> int:
        return warmup + 1 if self.timescale is None else max(1, length.steps(self.timescale))


@schedule.register("constant")
class Constant(SchedulePart):
    """Warm-up, then the peak rate to the end: for trunks, and for schedule-free optimisers."""

    def after_warmup(self, step: int, warmup: int, length: Length) -> float:
        return 1.0

    def decay_start(self, *, total: int, batch_tokens: int, params: int) -> int:
        return total


@schedule.register("cosine", paper="Loshchilov & Hutter 2017, arXiv 1608.03983")
class Cosine(SchedulePart):
    """Warm-up, then half a cosine down to ``floor``."""

    floor: float = pydantic.Field(0.1, ge=0, le=1)
    """Factor at the end."""

    def after_warmup(self, step: int, warmup: int, length: Length) -> float:
        return fall("cosine", (step - warmup) / max(1, length.total - warmup), self.floor)

    def decay_start(self, *, total: int, batch_tokens: int, params: int) -> int:
        return min(total, Length(total, batch_tokens, params).steps(self.warmup) + 1)


@schedule.register("linear", paper="Bergsma et al. 2025, arXiv 2502.15938")
class Linear(SchedulePart):
    """Warm-up, then a straight line down to ``floor``: to 0, the best of fixed lengths at 20 and more tokens per parameter."""

    floor: float = pydantic.Field(0.0, ge=0, le=1)
    """Factor at the end."""

    def after_warmup(self, step: int, warmup: int, length: Length) -> float:
        return fall("linear", (step - warmup) / max(1, length.total - warmup), self.floor)

    def decay_start(self, *, total: int, batch_tokens: int, params: int) -> int:
        return min(total, Length(total, batch_tokens, params).steps(self.warmup) + 1)


class Milestone(Config):
    """A point of a piecewise schedule."""

    at: InSteps
    """Where: a share of the budget, or steps or tokens from the start."""
    factor: float = pydantic.Field(ge=0, le=1)
    """Factor from here on."""


@schedule.register("multistep", paper="DeepSeek-AI 2024 (DeepSeek LLM), arXiv 2401.02954")
class MultiStep(SchedulePart):
    """Warm-up, then pieces: a constant rate between milestones, or straight lines through them."""

    milestones: tuple[Milestone, ...] = (
        Milestone(at=Duration.parse("80%"), factor=0.316),
        Milestone(at=Duration.parse("90%"), factor=0.1),
    )
    """Factors and where they begin, in order."""
    interpolate: bool = False
    """Straight lines between the end of the warm-up (at 1) and the milestones, instead of steps."""

    def after_warmup(self, step: int, warmup: int, length: Length) -> float:
        at, value = warmup, 1.0
        for where, factor in self._points(warmup, length):
            if step < where:
                return value if not self.interpolate else value + (factor - value) * max(0, step - at) / (where - at)
            at, value = where, factor
        return value

    def _points(self, warmup: int, length: Length) -> list[tuple[int, float]]:
        points = [(length.steps(m.at), m.factor) for m in self.milestones]
        places = [warmup, *(at for at, _ in points), length.total]
        if places != sorted(set(places)):
            raise ConfigError(
                f"train.schedule.milestones: they stand at steps {', '.join(map(str, places[1:-1]))}; each must come after the one before it, "
                f"after the warm-up ({warmup} steps) and before the end ({length.total})."
            )
        return points

    def decay_start(self, *, total: int, batch_tokens: int, params: int) -> int:
        length = Length(total, batch_tokens, params)
        warmup = length.steps(self.warmup)
        before = warmup
        for m, (at, _) in zip(self.milestones, self._points(warmup, length), strict=True):
            if m.at.unit == "%":
                return min(total, before + 1) if self.interpolate else at
            before = at
        return total

    def trunk(self, *, total: int, batch_tokens: int, params: int) -> tuple[Any, ...]:
        length = Length(total, batch_tokens, params)
        warmup = length.steps(self.warmup)
        fixed = [p for m, p in zip(self.milestones, self._points(warmup, length), strict=True) if m.at.unit != "%"]
        return ("multistep", warmup, self.interpolate, tuple(fixed), tuple(m.at.unit == "%" for m in self.milestones))
