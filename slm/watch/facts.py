"""What a run's config says about its length and cost. Plain arithmetic where that is enough, the model's costs where not."""

from __future__ import annotations

from typing import Any

import pydantic

from slm.config.errors import ConfigError, SlmError


def total_steps(config: dict[str, Any], params: int | None) -> int | None:
    """Optimiser steps of the whole run; None where the config can't be understood (parts of somebody's own).

    ``params``: stored parameters, if known. With them most budgets are turned into steps without loading torch.
    """
    from slm.train.budget import Budget

    try:
        train = config["train"]
        budget, batch = Budget(**train["budget"]), train["batch_tokens"]
    except (KeyError, TypeError, pydantic.ValidationError, SlmError):
        return None
    if params is not None or budget.tokens_per_param is None:
        try:
            return budget.total_steps(params or 0, batch)
        except ConfigError:
            pass  # in FLOPs, or in parameters counted another way
    run = _run(config)
    return None if run is None else budget.total_steps(run.model.costs(), batch)


def flops_per_token(config: dict[str, Any]) -> float | None:
    """Training FLOPs per token, as `slm plan` counts them."""
    run = _run(config)
    return None if run is None else run.model.costs().flops_per_token["train"]


def _run(config: dict[str, Any]) -> Any:
    from slm.run import Run

    try:
        return Run(**config)
    except (TypeError, ValueError, SlmError):  # pydantic's errors are ValueErrors
        return None
