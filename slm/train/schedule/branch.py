"""Trunk and branches: one long run at a constant rate, and short decays that leave it where a budget ends.

    trunk    warm-up ________________________________________________
    branch 1            \\ 5B tokens
    branch 2                            \\ 10B tokens
    branch 3                                                        \\ 20B tokens

Three budgets cost the longest run and two decays (Hägele et al. 2024, arXiv 2405.18392). It is the same experiment as three runs only if a
branch, had it been run from the start, would have had the trunk's rates up to where it leaves: `check_branch` holds a branch to that.
A warm-up given as a share of the budget would differ, so `branch_of` fixes it in steps.
"""

from __future__ import annotations

from slm.config.durations import Duration
from slm.config.errors import ConfigError
from slm.train.schedule.base import Length, SchedulePart
from slm.train.schedule.shapes import Constant, Decaying, Shape, WarmupStableDecay


def shared_until(
    a: SchedulePart, a_total: int, b: SchedulePart, b_total: int, *, batch_tokens: int, params: int
) -> int:
    """A number of steps at the start in which two schedules have exactly the same factors; 0 if their trunks differ."""
    lengths = [{"total": total, "batch_tokens": batch_tokens, "params": params} for total in (a_total, b_total)]
    if a.trunk(**lengths[0]) != b.trunk(**lengths[1]):
        return 0
    return min(a.decay_start(**lengths[0]), b.decay_start(**lengths[1]))


def branch_of(
    trunk: SchedulePart,
    *,
    trunk_total: int,
    at: int,
    decay: Duration,
    batch_tokens: int,
    params: int,
    shape: Shape | None = None,
    floor: float | None = None,
) -> tuple[SchedulePart, int]:
    """The schedule of a branch that decays from step ``at``, and its total steps. ``shape`` and ``floor``: None takes the trunk's.

    A share as ``decay`` is one of the branch's whole length, as in a run from the start.

    Raises:
        ConfigError: the trunk has no plateau to leave (cosine, ...), or its own decay or its warm-up isn't over at ``at``.
    """
    if isinstance(trunk, Constant):
        trunk = WarmupStableDecay(warmup=trunk.warmup, decay=Duration(0, "steps"))
    if not isinstance(trunk, Decaying):
        raise ConfigError(
            f"train.schedule={trunk.part_name} depends on the run's length all the way, so no branch can leave it. Train the trunk with wsd, "
            f"constant or inverse_sqrt."
        )
    length = Length(trunk_total, batch_tokens, params)
    if decay.unit == "%":
        total = round(at / (1 - decay.value / 100)) if decay.value < 100 else 0
    else:
        total = at + length.steps(decay)
    if total <= at:
        raise ConfigError(f"A branch's decay of {decay} is no step long, or leaves no trunk.")
    changes = {"shape": shape or trunk.shape, "floor": trunk.floor if floor is None else floor}
    warmup = Duration(length.steps(trunk.warmup), "steps")
    branch = trunk.with_(warmup=warmup, decay=Duration(total - at, "steps"), **_fixed(trunk, length), **changes)
    check_branch(trunk, trunk_total, branch, total, at=at, batch_tokens=batch_tokens, params=params)
    return branch, total


def check_branch(
    trunk: SchedulePart,
    trunk_total: int,
    branch: SchedulePart,
    branch_total: int,
    *,
    at: int,
    batch_tokens: int,
    params: int,
) -> None:
    """Raises `ConfigError` unless a branch from step ``at`` has had the trunk's rates up to there, and goes on behind it."""
    shared = shared_until(trunk, trunk_total, branch, branch_total, batch_tokens=batch_tokens, params=params)
    if not shared:
        raise ConfigError(
            "The branch's schedule isn't the trunk's: warm-up (in steps) and what follows it must be the same. Give the warm-up in steps "
            "or tokens, not as a share."
        )
    if at > shared:
        raise ConfigError(
            f"A branch can't leave at step {at}: the rates of trunk and branch are the same up to step {shared} only. Take a checkpoint "
            f"from before that, or change the length of the decay."
        )
    if at >= branch_total:
        raise ConfigError(f"The branch ends at step {branch_total}, and is to leave the trunk at step {at}.")


def _fixed(trunk: Decaying, length: Length) -> dict[str, Duration]:
    """What else of the trunk depends on its length, in steps."""
    timescale = getattr(trunk, "timescale", None)
    return {} if timescale is None else {"timescale": Duration(length.steps(timescale), "steps")}
