"""One page for several runs: their curves over tokens, steps, FLOPs or hours as the reader chooses, and how they differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from slm.config.errors import ConfigError, RunError
from slm.config.identity import differences
from slm.report.charts import COLOURS
from slm.report.page import check_place, render, write
from slm.report.records import SECTIONS, RunFiles
from slm.report.run import memory_key, tokens_at
from slm.report.thin import LIMIT, buckets

AXES = {"tokens": "training tokens", "steps": "steps", "flops": "training FLOPs", "hours": "hours of training"}
"""The x axes: name -> label. Hours are of training alone, as the trainer counts them."""
MOST_DIFFERENCES = 40

FlopsOf = Callable[[dict[str, Any]], float | None]
"""Training FLOPs per token of a config; None where they can't be known."""


def write_comparison(run_dirs: Sequence[Path], out: Path, flops_of: FlopsOf, axis: str = "tokens") -> Path:
    """Write the page that compares runs, finished or not.

    Raises:
        ConfigError: no such axis, or no such place for a page.
        RunError: a run has no records yet, or damaged files.
    """
    if axis not in AXES:
        raise ConfigError(f"There is no x axis {axis!r}; there are {', '.join(AXES)}.")
    check_place(out)
    runs = [RunFiles(d) for d in run_dirs]
    for run in runs:
        run.check()
        if not run.records.train:
            raise RunError(f"{run.dir} has no training records yet, so there is nothing to compare.")
    names = _distinct(runs)
    curves = [_curves(run, flops_of(run.config)) for run in runs]
    known = [a for a in AXES if all(a in c["train"]["x"] for c in curves)]
    if axis not in known:
        raise RunError(f"Not all of these runs say their {AXES[axis]}; the axes that they share: {', '.join(known)}.")
    data = {
        "axis": axis,
        "axes": {a: AXES[a] for a in known},
        "charts": _charts(curves),
        "runs": [{"name": name, "colour": i % len(COLOURS), **c} for i, (name, c) in enumerate(zip(names, curves, strict=True))],
    }  # fmt: skip
    page = render(
        "compare.html.j2",
        title=" · ".join(names) if len(names) <= 4 else f"{len(names)} runs",
        notes=[*(note for run in runs for note in run.notes), *_other_text(runs, names)],
        rows=[_row(run, name, i) for i, (run, name) in enumerate(zip(runs, names, strict=True))],
        colours=COLOURS,
        axes=data["axes"],
        axis=axis,
        differences=[(name, _differences(runs[0], run)) for run, name in zip(runs[1:], names[1:], strict=True)],
        script=Markup(files("slm.report").joinpath("templates/compare.js").read_text()),
        data=Markup(json.dumps(_plain(data), separators=(",", ":")).replace("<", "\\u003c")),
    )
    return write(out, page)


def _distinct(runs: Sequence[RunFiles]) -> list[str]:
    """The runs' names; their directories where two have the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.dir) for run in runs]


def _curves(run: RunFiles, flops_per_token: float | None) -> dict[str, Any]:
    """The run's curves: for training records and evaluations the x values by axis and the y values by name."""
    train, evals = run.records.train, run.records.eval
    parts = buckets(len(train), LIMIT)
    tokens = [r["tokens"] for r in train]
    eval_steps = [r["step"] for r in evals]
    eval_tokens = tokens_at(eval_steps, train)
    x: dict[str, list[float]] = {"tokens": tokens, "steps": [r["step"] for r in train]}
    eval_x: dict[str, list[float]] = {"tokens": eval_tokens, "steps": eval_steps}
    if flops_per_token is not None:
        x["flops"] = [flops_per_token * t for t in tokens]
        eval_x["flops"] = [flops_per_token * t for t in eval_tokens]
    if all("seconds" in r for r in train):
        x["hours"] = [r["seconds"] / 3600 for r in train]
        eval_x["hours"] = _interpolated(eval_tokens, tokens, x["hours"])
    keys = {"loss": "loss", "bpb": "bpb", "lr": "lr", "grad_norm": "grad_norm", "tokens_per_s": "tokens_per_s", "mfu": "mfu_causal", "memory": memory_key(train)}  # fmt: skip
    y = {name: [_number(r.get(key)) for r in train] for name, key in keys.items()}
    eval_y = {"heldout": [_number(r["heldout_bpb"]) for r in evals]}
    for source in sorted({s for r in evals for s in r.get("heldout_bpb_by_source", {})}):
        eval_y[f"heldout {source}"] = [_number(r.get("heldout_bpb_by_source", {}).get(source)) for r in evals]
    counts = [0, *(r.get("skipped", 0) for r in train)]
    skipped = [i for i in range(len(train)) if counts[i + 1] > counts[i]]
    return {
        "train": {
            "x": {k: [_mean(v[p]) for p in parts] for k, v in x.items()},
            "y": {k: [_mean(v[p]) for p in parts] for k, v in y.items() if any(map(math.isfinite, v))},
        },
        "eval": {"x": eval_x, "y": {k: v for k, v in eval_y.items() if v}},
        "skipped": {k: [v[i] for i in skipped] for k, v in x.items()},
    }


def _charts(curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The page's charts in order: which curves, with what name, and whether points are marked."""
    titles = {"loss": "Loss, nats per token", "bpb": "Bits per byte, training batches", "heldout": "Bits per byte, held-out sample",
              "lr": "Learning rate", "grad_norm": "Gradient norm before clipping", "tokens_per_s": "Tokens per second",
              "mfu": "Model FLOPs utilisation", "memory": "Memory, bytes"}  # fmt: skip
    there = {(kind, key) for c in curves for kind in ("train", "eval") for key in c[kind]["y"]}
    sources = sorted(key for _, key in there if key.startswith("heldout "))
    order = ["loss", "heldout", *sources, "bpb", "lr", "grad_norm", "tokens_per_s", "mfu", "memory"]
    return [
        {"kind": kind, "key": key, "title": titles.get(key) or f"Bits per byte, held-out from {key.removeprefix('heldout ')}"}
        for key in order
        for kind in ("train", "eval")
        if (kind, key) in there
    ]  # fmt: skip


def _row(run: RunFiles, name: str, index: int) -> dict[str, Any]:
    """A line of the table."""
    last, evals = run.records.train[-1], run.records.eval
    return {
        "name": name,
        "colour": index % len(COLOURS),
        "finished": bool(run.summary) and not (run.summary or {}).get("interrupted"),
        "params": run.params,
        "step": last["step"],
        "tokens": last["tokens"],
        "loss": last.get("loss"),
        "heldout": evals[-1]["heldout_bpb"] if evals else None,
        "best": min((r["heldout_bpb"] for r in evals), default=None),
        "final": (run.summary or {}).get("bpb"),
        "speed": last["tokens"] / last["seconds"] if last.get("seconds") else None,
        "seconds": last.get("seconds"),
        "skipped": last.get("skipped", 0),
    }


def _other_text(runs: Sequence[RunFiles], names: Sequence[str]) -> list[str]:
    """What to know where finished runs were scored on different held-out text."""
    texts: dict[str, list[str]] = {}
    for run, name in zip(runs, names, strict=True):
        heldout = (run.summary or {}).get("heldout")
        if isinstance(heldout, dict) and isinstance(heldout.get("docs"), int) and isinstance(heldout.get("bytes"), int):
            texts.setdefault(f"{heldout['docs']:,} documents of {heldout['bytes']:,} bytes", []).append(name)
    if len(texts) < 2:
        return []
    which = "; ".join(f"{', '.join(those)}: {size}" for size, those in texts.items())
    return [
        f"These runs were scored on different held-out text, so their held-out, best and final bits per byte can't be compared ({which}). "
        f"Score them on the same text: slm eval RUN --store STORE, if their tokenizers are the same"
    ]


def _differences(first: RunFiles, other: RunFiles) -> list[str]:
    """What defines the other experiment and not the first: ``train.optim.lr: 0.001 -> 0.003``."""
    old, new = ({section: run.config.get(section) for section in SECTIONS} for run in (first, other))
    lines = differences(old, new)
    more = len(lines) - MOST_DIFFERENCES
    return lines if more <= 0 else [*lines[:MOST_DIFFERENCES], f"and {more} more"]


def _interpolated(at: Sequence[float], x: Sequence[float], y: Sequence[float]) -> list[float]:
    import numpy as np

    result: list[float] = np.interp(at, x, y).tolist()
    return result


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _plain(value: Any) -> Any:
    """As valid JSON: 6 digits, null for what is not a number."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
