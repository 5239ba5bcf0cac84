"""What `slm train` and `slm launch` are asked for beside a recipe and overrides, in the words of overrides."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from slm.run import Run

BranchFrom = Annotated[
    str | None,
    typer.Option(
        "--branch-from",
        metavar="CKPT",
        help="Begin with a trunk's checkpoint, and decay: train.schedule.decay=10%.",
    ),
]
Profile = Annotated[int, typer.Option("--profile", metavar="N", min=0, help="Profile N steps.")]


def as_overrides(overrides: list[str] | None, branch_from: str | None, profile: int) -> list[str]:
    """Overrides that say all of it, so that another process can be told. ``train.decay`` is short for what a branch is all about.

    A trunk's name becomes its newest checkpoint here and now: a job that waits, or is queued again, begins with the same one.
    Raises `RunError` if there is none.
    """
    given = list(overrides or [])
    if branch_from is not None:
        given = [
            o.replace("train.decay=", "train.schedule.decay=", 1) if o.startswith("train.decay=") else o for o in given
        ]
        given.append(f"log.branch_from={_quoted(_found(branch_from))}")
    if profile:
        given.append(f"log.profile={profile}")
    return given


def _is_there(trunk: str) -> bool:
    from slm import checkpoint
    from slm.config.errors import SlmError

    try:
        return checkpoint.resolve(trunk).exists()
    except SlmError:
        return False


def _found(trunk: str) -> str:
    from slm import checkpoint
    from slm.config.errors import RunError

    try:
        return str(checkpoint.resolve(trunk))
    except RunError as error:
        raise RunError(
            f"--branch-from: {error} A branch that has begun goes on without it: slm train runs/NAME/config.yaml."
        ) from None


def _quoted(text: str) -> str:
    """In the grammar of overrides: backslashes count only before a quote."""
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', '\\"'), text)
    return f'"{escaped}"'


def branched(run: "Run") -> "Run":
    """The run as a branch, if it is one. Raises what `slm.train.branching.branch` raises.

    A branch's own config.yaml is one already, and once it has checkpoints it needs its trunk no more: that may be gone.
    """
    if run.log.branch_from is None:
        return run
    from slm import checkpoint
    from slm.train.branching import branch
    from slm.train.rundir import run_dir_of

    if (
        run.train.branch is not None
        and checkpoint.latest(run_dir_of(run)) is not None
        and not _is_there(run.log.branch_from)
    ):
        return run

    return branch(run, run.log.branch_from)
