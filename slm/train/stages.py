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
    from slm.run import Run

CHANGEABLE = ("data.", "model.context", "model.position", "train.optim.", "train.clip", "train.spikes", "impl.", "log.")
"""What a stage may change. Budget, schedule and batch are the whole run's; the rest of the model and the tokenizer can't change."""


def stage_runs(run: "Run") -> "list[Run]":
    """The stages of a run as runs, each a branch of the one before; the run alone if it has none.

    Raises:
        ConfigError: stages that don't begin in order; a change that a stage can't make, or that makes no valid run.
    """
    if not run.train.stages:
        return [run]
    course = Course.of(run, run.model.costs())
    begins = [course.steps(stage.begin) if stage.begin.value else 0 for stage in run.train.stages]
    if begins[0] != 0 or sorted(set(begins)) != begins or begins[-1] >= course.total:
        raise ConfigError(
            f"train.stages begin at steps {begins} of {course.total}: the first begins at 0, and each later one after the one before."
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
        if not any(key.startswith(prefix) for prefix in CHANGEABLE):
            raise ConfigError(f"train.stages: a stage can't change {key!r}; it can change {', '.join(CHANGEABLE)}.")
        *path, last = key.split(".")
        place = plain
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    plain["name"], plain["log"]["dir"] = f"{run.name}/{name}", str(run_dir_of(run) / name)
    plain["train"] |= {"stages": [], "until": end}
    if before is not None:
        plain["train"]["branch"] = Ancestor(trunk=before.identity, step=begin).model_dump(mode="json")
        plain["log"]["branch_from"] = str(run_dir_of(before))
    try:
        return type(run)(**plain)
    except pydantic.ValidationError as error:
        raise explain(error, type(run)) from None
