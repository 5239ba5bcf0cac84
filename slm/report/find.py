"""Finding a run by what a user calls it, and listing the runs there are where there is none of that name."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from slm.config.errors import ConfigError
from slm.report.records import CONFIG, METRICS

NOT_RUNS = ("checkpoints", "hf", "wandb", "tensorboard")
"""Directories of a run that hold no further runs; a checkpoint's own config.yaml makes it no run."""
LISTED = 10


def find_run(given: str) -> Path:
    """The directory of a run, given as a path or by its name under ``runs/``. Raises `ConfigError` with the runs there."""
    for place in (Path(given), Path("runs") / given):
        if is_run(place):
            return place
    raise ConfigError(
        f"There is no run {given!r}: neither that directory nor runs/{given} holds a {METRICS} or a {CONFIG}. {runs_here(given)}"
    )


def is_run(place: Path) -> bool:
    """Whether a directory holds a run, finished or not. What can't be looked into holds none."""
    return any(os.path.isfile(place / name) for name in (METRICS, CONFIG))


def runs_here(given: str, limit: int = LISTED) -> str:
    """A sentence that names the runs under ``runs/``, at most ``limit`` of them, those first that are called most like ``given``."""
    wanted = given.strip("/").removeprefix("runs/")
    known = sorted(list_runs(Path("runs")), key=lambda name: (-_likeness(wanted, name), name))
    if not known:
        return "There are no runs under runs/ here: `slm train RECIPE` makes one."
    close = f"Did you mean {known[0]!r}? " if _likeness(wanted, known[0]) >= 0.6 else ""
    if close and len(known) == 1:
        return close.strip()
    more = f", and {len(known) - limit} more" if len(known) > limit else ""
    return f"{close}Runs under runs/ here, the nearest names first: {', '.join(known[:limit])}{more}."


def list_runs(folder: Path) -> list[str]:
    """The names of all runs under a folder, stages (``a/1-short``) and members of sweeps (``a/k=v``) too."""
    found = list[str]()
    for place, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in NOT_RUNS and not f.startswith(".")]
        if Path(place) != folder and (METRICS in files or CONFIG in files):
            found.append(Path(place).relative_to(folder).as_posix())
    return sorted(found)


def _likeness(wanted: str, name: str) -> float:
    """From 0 to 1. A name that begins with what is wanted, or has it in it, is nearer than one with the same letters."""
    alike = difflib.SequenceMatcher(None, wanted.lower(), name.lower()).ratio()
    if not wanted or wanted.lower() not in name.lower():
        return alike
    return max(alike, 0.8 if name.lower().startswith(wanted.lower()) else 0.7)
