"""Finding a run by what a user calls it."""

from __future__ import annotations

import os
from pathlib import Path

from slm.config.errors import ConfigError
from slm.config.runs import ROOT, instead
from slm.report.records import CONFIG, METRICS


def find_run(given: str) -> Path:
    """The directory of a run, given as a path or by its name under ``runs/``. Raises `ConfigError` with the runs there."""
    for place in (Path(given), ROOT / given):
        if is_run(place):
            return place
    raise ConfigError(
        f"There is no run {given!r}: neither that directory nor {ROOT / given} holds a {METRICS} or a {CONFIG}. {instead(given, is_run)}"
    )


def is_run(place: Path) -> bool:
    """Whether a directory holds a run, finished or not. What can't be looked into holds none."""
    return any(os.path.isfile(place / name) for name in (METRICS, CONFIG))
