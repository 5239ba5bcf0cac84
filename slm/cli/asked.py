"""What `slm train` and `slm launch` are asked for beside a recipe and overrides, in the words of overrides."""

from __future__ import annotations

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
    """Overrides that say all of it, so that another process can be told. ``train.decay`` is short for what a branch is all about."""
    given = list(overrides or [])
    if branch_from is not None:
        given = [
            o.replace("train.decay=", "train.schedule.decay=", 1) if o.startswith("train.decay=") else o for o in given
        ]
        path = branch_from.replace('"', '\\"')
        given.append(f'log.branch_from="{path}"')
    if profile:
        given.append(f"log.profile={profile}")
    return given


def branched(run: "Run") -> "Run":
    """The run as a branch, if it is one. Raises what `slm.train.branching.branch` raises."""
    if run.log.branch_from is None:
        return run
    from slm.train.branching import branch

    return branch(run, run.log.branch_from)
