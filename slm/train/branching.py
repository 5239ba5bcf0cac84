"""Branches: runs that begin with a checkpoint of another one, the trunk, and let the rate decay from there.

    slm train RECIPE --branch-from runs/trunk/checkpoints/step-00020000 train.schedule.decay=10%

What the branch is to be follows from the trunk's schedule (`slm.train.schedule.branch_of`): the trunk's rates up to the checkpoint, a decay
from there to the end, and a budget that ends with it. So a trunk with branches at several places gives a whole axis of budgets for little
more than the longest. A branch has an identity of its own, in which the trunk's stands (``train.branch``).

Everything else of the experiment is taken as it is given: a branch may anneal on another mixture, or at another rate. Model and
tokenizer have to be the trunk's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from slm.checkpoint import describe, resolve, specs
from slm.config.base import explain
from slm.config.durations import Duration
from slm.config.errors import ConfigError
from slm.config.identity import differences, fingerprint
from slm.train.budget import Budget
from slm.train.config import Ancestor
from slm.train.course import Course
from slm.train.given import same_tokenizer, tokenizer_at
from slm.train.metrics import read_metrics, write_metrics
from slm.train.schedule import branch_of
from slm.train.schedule.shapes import Decaying

if TYPE_CHECKING:
    from slm.data.tokenizer import TokenizerPart
    from slm.run import Run

SAME = ("model", "tokenizer")
"""Sections in which a branch can't differ from its trunk,"""
FREE = ("model.context:", "model.position.")
"""but for what says how long rows are, and how positions are told apart; and the trunk's tokenizer may be given as a file."""


def branch(run: "Run", source: str) -> "Run":
    """``run`` as a branch of a checkpoint (or of a run's newest): with the schedule, the budget and the ancestor that follow.

    Raises:
        ConfigError: another model or tokenizer than the trunk's; a schedule that can't be left, or not there.
        RunError: no checkpoint, or a damaged one.
    """
    path = resolve(source)
    config, state = describe(path)
    if "loader" not in state or not specs(path, "optimizer"):
        raise ConfigError(
            f"{path} can't be branched from: it has weights, but no state of an optimiser or no place in the data (an average, or a pruned or "
            f"imported model). Begin with its weights: train.init_from={source}."
        )
    try:
        trunk = type(run)(**config)
    except pydantic.ValidationError as error:
        raise explain(error, type(run), f"{path}/config.yaml") from None
    mine, theirs = run.experiment(), trunk.experiment()
    found = [d for section in SAME for d in differences({section: theirs[section]}, {section: mine[section]})]
    free = FREE if not _is_of(run.tokenizer, path) else (*FREE, "tokenizer.")
    if odd := [d for d in found if not d.startswith(free)]:
        raise ConfigError(f"A branch of {path} has the trunk's model and tokenizer, but {'; '.join(odd)}.")
    if odd := differences({"train": _batches(trunk)}, {"train": _batches(run)}):
        raise ConfigError(f"A branch of {path} has the trunk's batches, but {'; '.join(odd)}.")
    if run.train.optim.part_name != trunk.train.optim.part_name or (run.train.ema is None) != (trunk.train.ema is None):
        raise ConfigError(
            f"A branch of {path} goes on with the trunk's optimiser and average, so it has train.optim={trunk.train.optim.part_name} and "
            f"{'a' if trunk.train.ema is not None else 'no'} train.ema. To begin anew with its weights: train.init_from={source}."
        )
    ancestor = Ancestor(trunk=fingerprint(theirs), step=state["step"])
    if run.train.branch is not None:  # a branch's own config.yaml
        if run.train.branch != ancestor:
            raise ConfigError(
                f"This run branches from step {run.train.branch.step} of experiment {run.train.branch.trunk}; {path} is step "
                f"{ancestor.step} of {ancestor.trunk}."
            )
        return run
    train = run.train.with_(**_schedule_and_budget(run, trunk, state["step"]), branch=ancestor)
    own_name = run.name != trunk.name or run.log.dir != trunk.log.dir
    name = run.name if own_name else f"{run.name}-branch-{state['step']}"
    log = run.log.with_(branch_from=str(path), dir=run.log.dir if own_name else None)
    return run.with_(train=train, name=name, log=log)


def check_tokenizer(point: Path, ours: bytes) -> None:
    """Raise `ConfigError` if a branch's text was tokenised with another tokenizer than the checkpoint that it begins with."""
    file = tokenizer_at(point)
    if file.is_file() and not same_tokenizer(file.read_bytes(), ours):
        raise ConfigError(
            f"{point} was trained with another tokenizer than this run's text was made with, so the ids would mean other text: a tokenizer that "
            f"is trained on a run's own text changes with its sources and filters. Take the trunk's: tokenizer=file tokenizer.path={file}. Or "
            f"name all sources in the trunk already; a mixture may leave some of them out at first."
        )


def _is_of(tokenizer: "TokenizerPart", point: Path) -> bool:
    """Whether a tokenizer is the file that a checkpoint was trained with."""
    from slm.data.tokenizer import FromFile

    file = tokenizer_at(point)
    if not file.is_file() or not isinstance(tokenizer, FromFile):
        return False
    return same_tokenizer(file.read_bytes(), tokenizer.load(lambda: ()).to_bytes())


def _batches(run: "Run") -> dict[str, Any]:
    dumped = run.train.model_dump(mode="json")
    return {name: dumped[name] for name in ("batch_tokens", "batch_ramp")}


def _schedule_and_budget(run: "Run", trunk: "Run", step: int) -> dict[str, Any]:
    """In full batches, which are steps where there is no ramp."""
    wanted, course = run.train.schedule, Course.of(trunk, trunk.costs())
    if not isinstance(wanted, Decaying):
        raise ConfigError(
            f"A branch ends in a decay, and train.schedule={wanted.part_name} has none: add train.schedule=wsd train.schedule.decay=10%."
        )
    decay = wanted.decay if wanted.decay.value > 0 else Duration.parse("10%")
    ramp = trunk.train.batch_ramp is not None
    at = course.tokens(step) // course.batch_tokens if ramp else step
    schedule, total = branch_of(
        trunk.train.schedule,
        trunk_total=course.tokens(course.total) // course.batch_tokens if ramp else course.total,
        at=at,
        decay=decay,
        batch_tokens=course.batch_tokens,
        params=course.params,
        shape=wanted.shape,
        floor=wanted.floor,
    )
    budget = Budget(tokens=total * course.batch_tokens) if ramp else Budget(steps=total)
    return {"schedule": schedule, "budget": budget}


def branch_point(run: "Run") -> Path:
    """The checkpoint that a branch begins with. Raises `RunError` if it isn't there."""
    if run.log.branch_from is None:
        raise ConfigError("This run is a branch (train.branch): say of which checkpoint, with --branch-from.")
    path = resolve(run.log.branch_from)
    branch(run, str(path))  # refuses another checkpoint than the one it was set up for
    return path


def inherit_metrics(run_dir: Path, checkpoint: Path, step: int) -> None:
    """Begin a branch's records with the trunk's, up to where it left."""
    theirs, own = checkpoint.parent.parent / "metrics.jsonl", run_dir / "metrics.jsonl"
    if theirs.exists() and not own.exists():
        write_metrics(own, [record for record in read_metrics(theirs) if record["step"] <= step])
