"""Fills templates. Everything that comes from data is escaped."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from slm.config.errors import ConfigError, RunError
from slm.config.files import replace_durably


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("slm.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["si"] = si
    environment.filters["unit"] = unit
    environment.filters["count"] = count
    environment.filters["span"] = span
    return environment


def render(template: str, **values: Any) -> str:
    """A template as text. SVG strings under ``charts`` are trusted, all else is escaped."""
    charts = {name: Markup(svg) for name, svg in values.pop("charts", {}).items()}
    return _environment().get_template(template).render(charts=charts, **values)


def write(path: Path, text: str) -> Path:
    """Write a page whole or not at all.

    Raises:
        ConfigError: there can be no such file.
        RunError: the disk refuses it.
    """
    check_place(path)
    try:
        replace_durably(path, text.encode())
    except OSError as error:
        raise RunError(
            f"Can't write {path}: {error.strerror or error}. Make room, or get leave to write there; `slm report` writes elsewhere with --out."
        ) from None
    return path


def check_place(path: Path) -> None:
    """Raise `ConfigError` if a page can't be at ``path`` because of what is, or isn't, there: asked before the page is drawn."""
    if os.path.isdir(path):
        raise ConfigError(
            f"{path} is a directory, and a page is one file: name a file, such as {path / 'report.html'}."
        )
    if not os.path.isdir(path.parent):
        raise ConfigError(f"There is no directory {path.parent} for {path.name}: make it, or name a file elsewhere.")


def si(value: float | None, digits: int = 3) -> str:
    """1234567 -> 1.23M."""
    if value is None:
        return "n/a"
    for factor, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * (1 - 0.5 * 10**-digits):  # 999,999 is 1M, not 1e+03k
            return f"{value / factor:.{digits}g}{letter}"
    return f"{value:.{digits}g}"


def unit(value: float | None, name: str) -> str:
    """(824_344_576, "B") -> 824 MB, the letter on the unit's side."""
    if value is None:
        return "n/a"
    text = si(value)
    return f"{text[:-1]} {text[-1]}{name}" if text[-1].isalpha() else f"{text} {name}"


def count(value: float) -> str:
    """Counts of things, exact while they are short: 2,048; 1.23M."""
    return f"{round(value):,}" if abs(value) < 100_000 else si(value)


def span(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "n/a"
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds / 3600:.1f} h"
