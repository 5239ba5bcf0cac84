"""What there is to know about a run now, as one flat object: the JSON of `slm watch --json`, and what the view shows."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from slm.config.identity import fingerprint
from slm.report.records import CONFIG, METRICS, SECTIONS, RunFiles
from slm.watch.facts import Length, length
from slm.watch.lock import held

STALLED_SECONDS = 180.0
RECENT = 20
"""Records whose median is the pace."""


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment. Times are in seconds, ``quiet`` the time since its files last changed; None is unknown."""

    name: str
    dir: str
    identity: str | None
    state: str
    """running, stalled, interrupted or finished."""
    quiet: float
    params: int | None
    step: int
    total_steps: int | None
    tokens: int
    tokens_per_param: float | None
    loss: float | None
    bpb: float | None
    lr: float | None
    grad_norm: float | None
    tokens_per_s: float | None
    mfu: float | None
    skipped: int
    seconds: float
    eta: float | None
    heldout_bpb: float | None
    best_heldout_bpb: float | None
    best_step: int | None
    checkpoint_step: int | None
    checkpoint_age: float | None
    final_bpb: float | None
    problem: str | None
    """What is wrong with the run's files; the rest is told from what is left of them."""

    def as_json(self) -> dict[str, Any]:
        """As an object that is valid JSON: a loss that is not a number is null."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


class Watched:
    """A run that is looked at again and again."""

    def __init__(self, run_dir: Path) -> None:
        self.files = RunFiles(run_dir)
        self._length: Length | None = None
        self._asked = False

    def look(self) -> Snapshot:
        """Read what is new and say how the run stands."""
        files = self.files
        files.refresh()
        train, summary = files.records.train, files.summary
        last = train[-1] if train else {}
        step = last.get("step", 0)
        finished = summary is not None and not summary.get("interrupted")
        if summary is not None and finished:
            self._length = Length(summary["steps"], last.get("tokens", 0))
        elif (
            train and files.config and not self._asked
        ):  # with records the parameters are known: torch is seldom needed
            self._length, self._asked = length(files.config, files.params), True
        quiet = _age(files.dir / METRICS, files.dir / CONFIG)
        speed = _recent(train, "tokens_per_s")
        evals = [r for r in files.records.eval if math.isfinite(r["heldout_bpb"])]
        best = min(evals, key=lambda r: r["heldout_bpb"], default={})
        checkpoint_step, checkpoint = max(_checkpoints(files.dir), default=(None, None))
        return Snapshot(
            name=files.name,
            dir=str(files.dir),
            identity=_identity(files.config),
            state="finished" if finished else _state(files.dir, quiet, train),
            quiet=quiet,
            params=files.params,
            step=step,
            total_steps=self._length.steps if self._length else None,
            tokens=last.get("tokens", 0),
            tokens_per_param=last.get("tokens_per_param"),
            loss=last.get("loss"),
            bpb=last.get("bpb"),
            lr=last.get("lr"),
            grad_norm=last.get("grad_norm"),
            tokens_per_s=speed,
            mfu=_recent(train, "mfu_causal"),
            skipped=last.get("skipped", 0),
            seconds=last.get("seconds", 0.0),
            eta=_eta(last, self._length, speed),
            heldout_bpb=evals[-1]["heldout_bpb"] if evals else None,
            best_heldout_bpb=best.get("heldout_bpb"),
            best_step=best.get("step"),
            checkpoint_step=checkpoint_step,
            checkpoint_age=_age(checkpoint) if checkpoint else None,
            final_bpb=summary.get("bpb") if summary else None,
            problem="; ".join(files.notes) or None,
        )


def _checkpoints(run_dir: Path) -> Iterator[tuple[int, Path]]:
    """The checkpoints of a run with their steps; what isn't called as the trainer calls them is somebody else's."""
    for place in (run_dir / "checkpoints").glob("step-*"):
        if (step := place.name.removeprefix("step-")).isdecimal():
            yield int(step), place


def _state(run_dir: Path, quiet: float, train: list[dict[str, Any]]) -> str:
    """running, stalled or interrupted. Of a run on another machine only the age of its log is known."""
    patience = max(STALLED_SECONDS, 10 * _interval(train))
    trained = held(run_dir)
    if trained is None:
        return "running" if quiet < patience else "stalled"
    if not trained:
        return "interrupted"
    return "running" if quiet < patience else "stalled"


def _interval(train: list[dict[str, Any]]) -> float:
    """Median seconds between the newest records."""
    times = [r["seconds"] for r in train[-RECENT - 1 :] if "seconds" in r]
    return statistics.median(b - a for a, b in itertools.pairwise(times)) if len(times) > 1 else 0.0


def _recent(train: list[dict[str, Any]], key: str) -> float | None:
    values = [r[key] for r in train[-RECENT:] if r.get(key) is not None]
    return statistics.median(values) if values else None


def _eta(last: dict[str, Any], length: Length | None, tokens_per_s: float | None) -> float | None:
    """Seconds of training left at the newest pace; evaluations and checkpoints aren't in it."""
    if not last.get("step") or length is None or not tokens_per_s:
        return None
    return max(0, length.tokens - last["tokens"]) / tokens_per_s


def _identity(config: dict[str, Any]) -> str | None:
    """The experiment's hash, from a resolved config."""
    if not all(section in config for section in SECTIONS):
        return None
    from slm.train.config import what_counts

    sections = {section: value for section, value in config.items() if section in SECTIONS}
    try:
        return fingerprint(sections | {"train": what_counts(sections["train"])})
    except (AttributeError, TypeError):  # somebody edited it: a date, or a value where there should be keys
        return None


def _age(*paths: Path) -> float:
    """Seconds since the newest of ``paths`` changed; 0 where the clock of a shared disk runs ahead. They may not exist."""
    times = list[float]()
    for path in paths:
        with contextlib.suppress(OSError):  # a checkpoint may be removed just now
            times.append(path.stat().st_mtime)
    return max(0.0, time.time() - max(times)) if times else 0.0
