"""Which checkpoints go when a new one stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from slm.checkpoint.config import Retention
from slm.checkpoint.layout import folder_of, pinned, recorded_state, remove, step_of, steps

Stretch = Callable[[int], int]
"""How many stretches of ``retention.every`` are full after so many steps."""


def superseded(
    folder: Path, retention: Retention, stretch: Stretch | None = None, spare: Path | None = None
) -> list[Path]:
    """The checkpoints that no rule keeps, oldest first.

    ``stretch``: goes with ``retention.every``. ``spare``: the checkpoint that a session read and found whole when it began; it stays
    until two newer ones stand, whatever the rules say: of those, nobody has read a byte yet.
    """
    found = steps(folder)
    keep = set(found[-retention.last :]) | {p for p in found if pinned(p) is not None}
    if stretch is not None:
        first_of: dict[int, Path] = {}
        for path in found:
            first_of.setdefault(stretch(step_of(path)), path)
        keep |= {path for full, path in first_of.items() if full > 0}
    keep |= set(sorted(found, key=_bpb)[: retention.best]) - {p for p in found if math.isinf(_bpb(p))}
    keep |= set([p for p in found if sound(p)][-1:])
    if spare in found[-2:]:
        keep.add(spare)
    return [p for p in found if p not in keep]


def prune(folder: Path, retention: Retention, stretch: Stretch | None = None, spare: Path | None = None) -> None:
    """Remove what is superseded."""
    for path in superseded(folder, retention, stretch, spare):
        remove(path)


def sound(path: Path) -> bool:
    """Whether the last step before a checkpoint counted: one that was saved amid steps that were skipped for their gradient may hold weights
    that are beyond help, and isn't to take the place of the last one from before."""
    return not recorded_state(path).get("skipped_in_a_row")


def newest_sound(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run that is `sound`."""
    return next((path for path in reversed(steps(folder_of(run_dir))) if sound(path)), None)


def _bpb(path: Path) -> float:
    """Held-out bits per byte of a checkpoint; infinite if it wasn't evaluated."""
    value = recorded_state(path).get("heldout_bpb")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.inf
