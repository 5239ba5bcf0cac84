"""Stages: one run in which something changes on the way, such as the length of rows, the mixture or the rate.

    train:
      budget: {tokens: 100B}
      stages:
        - {name: short}
        - {name: long, from: 90%, change: {data.seq_len: 8192, model.context: 8192, model.position.base: 1e6}}

Budget and schedule are the whole run's. Each stage is trained in a directory of its own and begins with the last checkpoint of the one
before, as a branch does (`slm.train.branching`): steps, rate and optimiser go on. What changes holds from then on, in later stages too.
Rows go on where they were if the data are the same; those of changed data begin as far into them as the run has come, in tokens. (A
mixture alone can also change within one stage, by ``data.mixture``: then no row is read twice before all were read once.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pydantic

from slm.config.base import explain
from slm.config.errors import ConfigError
from slm.train.config import Ancestor
from slm.train.course import Course
from slm.train.rundir import run_dir_of

if TYPE_CHECKING:
    from slm.model.config import Model
    from slm.run import Run

CHANGEABLE = (
    "data.",
    "model.context",
    "model.position.",
    "train.optim.",
    "train.clip",
    "train.spikes.",
    "impl.",
    "log.",
)
"""What a stage may change. Budget, schedule and batch are the whole run's; the rest of the model and the tokenizer can't change."""
FIXED = ("model.position.name", "train.optim.name", "log.dir")
"""What it may not: another position encoding or optimiser would have other tensors, and a stage's place follows from the run's."""


def stage_runs(run: "Run") -> "list[Run]":
    """The stages of a run as runs, each a branch of the one before; the run alone if it has none.

    Raises:
        ConfigError: stages that don't begin in order; a change that a stage can't make, or that makes no valid run.
    """
    if not run.train.stages:
        return [run]
    course = Course.of(run, run.costs())
    begins = [course.at(stage.begin) for stage in run.train.stages]
    if begins[0] != 0 or sorted(set(begins)) != begins or begins[-1] >= course.total:
        raise ConfigError(
            f"train.stages begin at steps {begins} of {course.total}: the first begins at 0, and each later one after the one before."
        )
    if run.train.branch is not None and len(begins) > 1 and begins[1] <= run.train.branch.step:
        raise ConfigError(
            f"train.stages: stage {run.train.stages[1].name!r} begins at step {begins[1]}, but this run branches from step "
            f"{run.train.branch.step}, which is later. Leave out the stages that were over by then."
        )
    made: list[Run] = []
    changes: dict[str, Any] = {}
    for number, stage in enumerate(run.train.stages):
        changes |= stage.change
        end = begins[number + 1] if number + 1 < len(begins) else None
        made.append(
            _stage_run(run, changes, f"{number + 1}-{stage.name}", begins[number], end, made[-1] if made else None)
        )
    return made


def _stage_run(
    run: "Run", changes: dict[str, Any], name: str, begin: int, end: int | None, before: "Run | None"
) -> "Run":
    plain = run.model_dump(mode="json")
    for key, value in changes.items():
        _put(plain, key, value)
    plain["name"], plain["log"]["dir"] = f"{run.name}/{name}", str(run_dir_of(run) / name)
    plain["train"] |= {"stages": [], "until": end}
    if run.train.budget.hours is None:  # the same steps, whatever a stage changes; hours say so by themselves
        plain["train"]["budget"] = {"steps": run.train.budget.total_steps(run.costs(), run.train.batch_tokens)}
    if before is not None:
        plain["train"]["branch"] = Ancestor(trunk=before.identity, step=begin).model_dump(mode="json")
        plain["log"]["branch_from"] = str(run_dir_of(before))
    try:
        made = type(run)(**plain)
    except pydantic.ValidationError as error:
        raise explain(error, type(run)) from None
    if run.train.batch_ramp is not None and made.data.seq_len != run.data.seq_len:
        raise ConfigError(
            f"train.stages: {name} changes data.seq_len, and with a batch ramp the batches would be others: use one of them."
        )
    if shapes_of(made.model) != shapes_of(run.model):
        raise ConfigError(
            f"train.stages: the model of {name} has other tensors than the run's (learned positions for another context?)."
        )
    return made


def _put(plain: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a run's plain data."""
    if not any(key.startswith(prefix) for prefix in CHANGEABLE) or key in FIXED:
        raise ConfigError(
            f"train.stages: a stage can't change {key!r}; it can change {', '.join(CHANGEABLE)} (but not {' or '.join(FIXED)})."
        )
    *path, last = key.split(".")
    place: Any = plain
    for part in path:
        place = place.get(part) if isinstance(place, dict) else None
        if place is None:
            raise ConfigError(
                f"train.stages: {key!r} leads into something that isn't there or has no keys; set {part!r} as a whole."
            )
    if not isinstance(place, dict):
        raise ConfigError(f"train.stages: {key!r} leads into a list; set it as a whole.")
    place[last] = value


def shapes_of(model: "Model") -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors; nothing is allocated."""
    import torch

    from slm.model.decoder import Decoder

    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Decoder(model).named_parameters()}
