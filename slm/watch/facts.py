"""What a run's config says about its length and cost. Plain arithmetic where that is enough, the model's costs where not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pydantic

from slm.config.errors import SlmError


@dataclass(frozen=True)
class Length:
    """Where training ends: of a stage of a longer run, where the stage does."""

    steps: int
    tokens: int
    """Read by then, since the beginning of the whole run."""


def length(config: dict[str, Any], params: int | None) -> Length | None:
    """How long a run trains; None where the config can't be understood (parts of somebody's own).

    ``params``: stored parameters, if known. With them, and without a batch ramp, most budgets are turned into steps without loading torch.
    """
    plain = _plain_length(config, params)
    if plain is not None:
        return plain
    run = _run(config)
    if run is None:
        return None
    from slm.train.course import Course

    try:
        course = Course.of(run, run.costs())
    except SlmError:
        return None
    return Length(course.end, course.tokens(course.end))


def flops_per_token(config: dict[str, Any]) -> float | None:
    """Training FLOPs per token, as `slm plan` counts them."""
    run = _run(config)
    return None if run is None else run.costs().flops_per_token["train"]


def _plain_length(config: dict[str, Any], params: int | None) -> Length | None:
    """The length if all batches are alike and the budget is not in FLOPs, nor in parameters counted another way."""
    from slm.train.budget import Budget

    try:
        train = config["train"]
        budget, batch, until = Budget(**train["budget"]), train["batch_tokens"], train.get("until")
        if train.get("batch_ramp") is not None or (params is None and budget.tokens_per_param is not None):
            return None
        steps = budget.total_steps(params or 0, batch)
        end = min(steps, until or steps)
        return Length(end, end * batch) if isinstance(batch, int) else None
    except (KeyError, TypeError, ArithmeticError, pydantic.ValidationError, SlmError):
        return None


def _run(config: dict[str, Any]) -> Any:
    from slm.run import Run

    try:
        return Run(**config)
    except (TypeError, ValueError, SlmError):  # pydantic's errors are ValueErrors
        return None
