"""The benchmarks of the data rooms, by name."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slm.bench.corpus import Work
from slm.bench.machine import machine
from slm.bench.results import Result
from slm.config.errors import ConfigError, suggest

GROUPS = {
    "tokenise": "slm.bench.tokenising",
    "load": "slm.bench.loading",
    "pack": "slm.bench.packing",
    "resume": "slm.bench.resuming",
    "memory": "slm.bench.memory",
}
"""Name -> module with a function ``run(work)`` that yields results."""


def run(
    only: Sequence[str] = (),
    *,
    mb: float = 50,
    repeats: int = 3,
    work: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
    found: Callable[[Result], None] = lambda _: None,
) -> tuple[dict[str, Any], list[Result]]:
    """Run the named groups, or all; returns (machine and settings, results).

    Args:
        mb: megabytes of text that are tokenised; everything else grows with it.
        repeats: how often ours and the peer's take turns.
        work: where corpora, tokenizer and plans are made and kept for a next time; None: a place that is removed again.
        tell: called with the name of every group as it begins.
        found: called with every result as it comes, since all of them together may take an hour.

    Raises:
        ConfigError: a group that there is not, or sizes that can't be.
    """
    for name in only:
        if name not in GROUPS:
            raise ConfigError(f"There is no benchmark {name!r}. {suggest(name, GROUPS)}")
    if mb < 1 or repeats < 1:
        raise ConfigError(f"--mb {mb:g} --repeats {repeats}: both are 1 or more.")
    report: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(prefix="slm-bench-") as temporary:
        root = work or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        job = Work(root, mb, repeats)
        report["settings"] = {"mb": mb, "repeats": repeats, "vocab": job.vocab, "only": list(only)}
        results: list[Result] = []
        for name in only or GROUPS:
            tell(name)
            for one in importlib.import_module(GROUPS[name]).run(job):
                found(one)
                results.append(one)
    return report, results
