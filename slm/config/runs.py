"""Which runs there are, for the answer to a name that means none."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path("runs")
"""Where runs are, unless they were given another place."""
LISTED = 10
"""How many of them an answer names."""
DEPTH = 4
"""Levels of directories under `ROOT` that are searched: names with slashes, sweeps, stages. In any other directory it is half of them."""
NOT_RUNS = ("checkpoints", "hf", "wandb", "tensorboard")
"""Directories of a run that hold no further runs."""

IsRun = Callable[[Path], bool]


def runs_under(folder: Path, is_run: IsRun, depth: int = DEPTH) -> list[str]:
    """The names of all runs below a folder, stages (``a/1-short``) and members of sweeps (``a/k=v``) too."""
    found = list[str]()
    for place, inside, _ in os.walk(folder):
        here = Path(place)
        if here != folder and is_run(here):
            found.append(here.relative_to(folder).as_posix())
        deep = len(here.relative_to(folder).parts) >= depth
        inside[:] = [] if deep else [name for name in inside if name not in NOT_RUNS and not name.startswith(".")]
    return sorted(found, key=_by_number)


def instead(given: str | Path, is_run: IsRun) -> str:
    """Sentences for who named no run: the stages or members in the directory that was meant, or the runs here, the nearest names first."""
    for place in (Path(given), ROOT / given):
        members = runs_under(place, is_run, DEPTH // 2) if place.name and place != ROOT and os.path.isdir(place) else []
        if members:
            listed = _some([(place / member).as_posix() for member in members])
            return f"{place.as_posix()} holds runs, the stages of one or a sweep's: {listed}. Name one of them."
    wanted = str(given).strip("/").removeprefix(f"{ROOT}/")
    known = sorted(runs_under(ROOT, is_run), key=lambda name: (-_likeness(wanted, name), name))
    if not known:
        return f"There are no runs under {ROOT}/ here: `slm train quickstart` makes one."
    close = f"Did you mean {known[0]!r}? " if _likeness(wanted, known[0]) >= 0.6 else ""
    if close and len(known) == 1:
        return close.strip()
    return f"{close}Runs under {ROOT}/ here, the nearest names first: {_some(known)}."


def _by_number(name: str) -> list[tuple[int, str]]:
    """Stage 2 before stage 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _likeness(wanted: str, name: str) -> float:
    """From 0 to 1. A name that begins with what is wanted, or has it in it, is nearer than one with the same letters."""
    alike = difflib.SequenceMatcher(None, wanted.lower(), name.lower()).ratio()
    if not wanted or wanted.lower() not in name.lower():
        return alike
    return max(alike, 0.8 if name.lower().startswith(wanted.lower()) else 0.7)


def _some(names: list[str]) -> str:
    more = f", and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
