"""What a user says about order and mixture. Imports nothing but the schema, so that every section may use it."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import pydantic

from slm.config.base import Config
from slm.config.durations import InSteps

GRID = 1_000_000
"""Weights are whole numbers of millionths, so that no count ever depends on rounding."""

Policy = Literal["best_fit", "concat", "pad", "crop"]


class Order(Config):
    """In which order the rows of a source are read."""

    mode: Literal["global", "blocked"] = "global"
    """``global`` permutes all rows of an epoch; ``blocked`` keeps rows that are near in time near on disk."""
    block: int = pydantic.Field(1024, gt=0)
    """Neighbouring rows that move together (``blocked``)."""
    group: int = pydantic.Field(16, gt=0)
    """Blocks whose rows are shuffled among one another (``blocked``)."""


class Stage(Config):
    """A stretch of the run with its own weights."""

    until: InSteps | None = None
    """Where the stage ends, counted from the start of the run: '2B tokens', '500 steps', '20 tokens_per_param', '80%'.
    Nothing: the rest of the run (the last stage only)."""
    weights: dict[str, float]
    """Share of every source in the tokens of the stage; a source that isn't named has none. They sum to 1 and have at
    most six decimals."""
    ramp: bool = False
    """Go over from the previous stage's weights to these in a straight line, instead of at once."""

    @pydantic.field_validator("weights")
    @classmethod
    def _exact(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            if weight < 0 or not weight < float("inf"):
                raise ValueError(f"the weight of {name!r} is {weight}; weights are shares between 0 and 1")
            if (Fraction(repr(weight)) * GRID).denominator != 1:
                raise ValueError(
                    f"the weight of {name!r} is {weight!r}, which has more than six decimals. Weights are exact; round them"
                )
        total = sum(millionths(w) for w in weights.values())
        if total != GRID:
            raise ValueError(f"the weights sum to {total / GRID:.6f}, not to 1: {weights}")
        return weights


class Mixture(Config):
    """How much of every source is read when."""

    stages: tuple[Stage, ...] = pydantic.Field(min_length=1)
    """The stages, in the order of the run."""
    max_epochs: dict[str, float] = {}
    """How often a source may be read at most (4 is about as good as fresh text: Muennighoff et al. 2023); without an
    entry, as often as the weights ask."""
    on_exhaust: Literal["error", "renormalise", "stop"] = "error"
    """What happens where a source reaches its ``max_epochs`` before the end of the run: an ``error`` before the run;
    ``renormalise``: the other sources share its weight in proportion; ``stop``: the run ends there."""

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> "Mixture":
        for name, epochs in self.max_epochs.items():
            if not 0 < epochs < float("inf"):
                raise ValueError(f"max_epochs of {name!r} is {epochs}; it must be above 0")
        if self.stages[0].ramp:
            raise ValueError("the first stage can't be a ramp: there are no weights to start from")
        for number, stage in enumerate(self.stages[:-1]):
            if stage.until is None:
                raise ValueError(f"stage {number} has no 'until', but another stage follows")
        return self


def millionths(weight: float) -> int:
    """A weight as a whole number of millionths."""
    return int(Fraction(repr(float(weight))) * GRID)
