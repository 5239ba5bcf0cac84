"""Where a session begins: at the first step, at the run's newest checkpoint, or where a branch leaves its trunk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from slm import checkpoint
from slm.config.errors import RunError
from slm.config.identity import differences
from slm.train.branching import branch_point, check_tokenizer, inherit_metrics
from slm.train.course import Course
from slm.train.parallel.world import World
from slm.train.state import TrainState, newest, resume

if TYPE_CHECKING:
    from slm.run import Run

Say = Callable[[str], None]


def take_up(
    run: "Run", run_dir: Path, state: TrainState, course: Course, world: World, tokenizer: bytes, say: Say
) -> tuple[list[str], Path | None]:
    """Load what there is to go on from. Returns what there is to say, and this run's own checkpoint if it was one.

    Args:
        tokenizer: the file of the one that this run's text was tokenised with.

    Raises:
        ConfigError: a branch whose text has another tokenizer than the trunk's.
        RunError: it is damaged, or of another model, optimiser or data.
    """
    of = f"step {{:,}} of {course.total:,}"
    found = newest(run_dir, world, consent=run.log.resume == "latest-valid", say=say)
    if found is not None:
        resume(state, found, world)
        return [f"Resumed from {of.format(state.step)} in {run_dir}", *_executed_differently(run, found)], found
    if run.train.branch is None:
        return [], None
    point = branch_point(run)
    check_tokenizer(point, tokenizer)
    resume(state, point, world, rows_before=course.batches.rows_before)
    if world.main:
        _pin(point, run_dir, say)
        inherit_metrics(run_dir, point, state.step)
    return [f"Branches from {point} at {of.format(state.step)}", *_executed_differently(run, point)], None


def _pin(point: Path, run_dir: Path, say: Say) -> None:
    """Have the trunk keep what this run began with; a trunk on a disk that can't be written to is no reason not to branch."""
    try:
        checkpoint.pin(point, f"{run_dir} branches from it")
    except RunError as error:
        say(f"{error} The branch begins all the same.")


def _executed_differently(run: "Run", found: Path) -> list[str]:
    """What of ``impl`` is another than when a checkpoint was written. It is allowed, and said."""
    old = checkpoint.describe(found)[0].get("impl", {})
    changed = differences({"impl": old}, {"impl": run.model_dump(mode="json")["impl"]})
    return [f"Executed differently from here on: {'; '.join(changed)}"] if changed else []
