"""How long to train, in one of five units.

**Hours** are the odd one: a number of steps that depends on how fast this machine is today can't be repeated. So the rate is part of the
budget, ``{hours: 8, tokens_per_s: 250000}``: measure it once (`slm bench train`, or the first lines of a run), write it down, and the number
of steps (which the schedule needs) follows from the config alone, on every machine and after every resume. The clock comes in only where
the true rate is lower: `out_of_time` says, at a step boundary, that the hours are used up; the run then ends, within its schedule, and is
evaluated and exported as it is. A faster machine finishes early.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import pydantic

from slm.config.base import Config
from slm.config.errors import ConfigError

if TYPE_CHECKING:
    from slm.cost.cost import ModelCost

CHINCHILLA = 20
"""Tokens per parameter that are compute-optimal (Hoffmann et al. 2022, arXiv 2203.15556)."""


UNITS = ("tokens_per_param", "tokens", "steps", "flops", "hours")


@dataclass(frozen=True)
class Resolved:
    """A budget of one model in all units."""

    steps: int
    tokens: int
    flops: float
    """Of training, exactly counted (``flops_per_token.train`` of `slm plan`)."""
    tokens_per_param: float
    """Per stored parameter."""

    @property
    def chinchilla(self) -> float:
        """As a multiple of the compute-optimal 20 tokens per stored parameter."""
        return self.tokens_per_param / CHINCHILLA

    def __str__(self) -> str:
        return (
            f"{self.steps:,} steps, {self.tokens:.4g} tokens, {self.tokens_per_param:.4g} tokens per parameter "
            f"({self.chinchilla:.3g} x Chinchilla), {self.flops:.3g} FLOPs"
        )


class Budget(Config):
    """How long to train: exactly one of tokens_per_param, tokens, steps, flops and hours."""

    exclusive: ClassVar = (
        UNITS,
        *(("params", unit) for unit in UNITS if unit != "tokens_per_param"),
        *(("tokens_per_s", unit) for unit in UNITS if unit != "hours"),
    )

    tokens_per_param: float | None = pydantic.Field(None, gt=0)
    """Training tokens per parameter, counted as ``params`` says. Chinchilla is about 20."""
    tokens: float | None = pydantic.Field(None, gt=0)
    """Training tokens."""
    steps: int | None = pydantic.Field(None, gt=0)
    """Optimiser steps."""
    flops: float | None = pydantic.Field(None, gt=0)
    """Training FLOPs: forward and backward, attention's causal part counted, nothing recomputed."""
    hours: float | None = pydantic.Field(None, gt=0)
    """Hours of training at ``tokens_per_s``; evaluations and checkpoints not counted."""
    params: Literal["unique", "non_embedding", "total"] = "unique"
    """Which parameters ``tokens_per_param`` counts: stored ones, those without embedding and head (Kaplan, and many papers), or a shared
    block at each use."""
    tokens_per_s: float | None = pydantic.Field(None, gt=0)
    """Measured tokens per second of all devices together, for ``hours``: it makes the number of steps part of the experiment."""

    @pydantic.model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in UNITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"train.budget needs exactly one of {', '.join(UNITS)}; got {', '.join(given) or 'none'}."
            )
        if self.params != "unique" and self.tokens_per_param is None:
            raise ConfigError(
                f"train.budget.params={self.params} goes with tokens_per_param; this budget is in {given[0]}."
            )
        if (self.hours is None) != (self.tokens_per_s is None):
            raise ConfigError(
                "train.budget: hours needs tokens_per_s, and the other way round. Measure the rate (`slm bench train`, or the tokens/s of a "
                "short run) and write it beside the hours: the number of steps is then part of the experiment, and the same on every machine."
            )
        return self

    def total_steps(self, model: "ModelCost | int", batch_tokens: int) -> int:
        """Optimiser steps, rounded to the nearest and at least 1.

        ``model``: the model's costs; a number is its stored parameters, which is enough for tokens, steps, hours and tokens_per_param of those.

        Raises:
            ConfigError: a number was given, and the budget is in what it doesn't say.
        """
        if self.steps is not None:
            return self.steps
        return max(1, round(self._tokens(model) / batch_tokens))

    def out_of_time(self, seconds: float) -> bool:
        """Whether a budget in hours is used up after ``seconds`` of training, over all sessions of the run."""
        return self.hours is not None and seconds >= self.hours * 3600

    def _tokens(self, model: "ModelCost | int") -> float:
        if self.tokens is not None:
            return self.tokens
        if self.hours is not None and self.tokens_per_s is not None:
            return self.hours * 3600 * self.tokens_per_s
        if self.flops is not None:
            return self.flops / _costs(model, "a budget in flops").flops_per_token["train"]
        assert self.tokens_per_param is not None
        if isinstance(model, int) and self.params == "unique":
            return self.tokens_per_param * model
        counts: Mapping[str, int] = _costs(model, f"train.budget.params={self.params}").params
        return self.tokens_per_param * counts[self.params]


def _costs(model: "ModelCost | int", what: str) -> "ModelCost":
    if isinstance(model, int):
        raise ConfigError(
            f"{what} can't be turned into steps by a number of parameters alone; the model's costs are needed."
        )
    return model
