"""The page of a run, from the files in its directory: metrics.jsonl, config.yaml and, once finished, summary.json."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import jinja2

from slm.config.errors import RunError
from slm.report.charts import Chart, Line, draw
from slm.report.page import check_place, render, write
from slm.report.records import CONFIG, MEND, METRICS, SUMMARY, RunFiles
from slm.report.thin import thinned

TOKENS = "training tokens (millions)"


def write_run_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the page of a run, by default its ``report.html``; an unfinished run gets a page that says so.

    Raises:
        ConfigError: there can be no page at ``out``.
        RunError: there is nothing to report, or the run's files are damaged.
    """
    out = out or run_dir / "report.html"
    check_place(out)
    if not (run_dir / METRICS).exists():
        raise RunError(f"{run_dir} is no run directory: it has no {METRICS}.")
    files = RunFiles(run_dir)
    files.check()
    if not files.config:
        raise RunError(f"{run_dir} has no {CONFIG}, which says what was trained. {MEND[CONFIG]}")
    if not files.records.train:
        raise RunError(f"{run_dir} has no training records yet, so there is nothing to report.")
    try:
        page = _page(files)
    except (KeyError, jinja2.UndefinedError) as error:
        raise RunError(
            f"{run_dir / CONFIG} or {run_dir / SUMMARY} lacks something that the page shows: {error}. {MEND[CONFIG]} If that is not it: "
            f"{MEND[SUMMARY]}"
        ) from error
    return write(out, page)


def _page(files: RunFiles) -> str:
    train, evals, summary, config = files.records.train, files.records.eval, files.summary, files.config
    return render(
        "run.html.j2",
        title=config["name"],
        summary=summary,
        last=train[-1],
        evaluated=evals[-1] if evals else None,
        config=config,
        config_text=files.config_text,
        notes=files.notes,
        command=(summary or {}).get("command") or f"slm train {files.dir / CONFIG}",
        bars=_bars(summary),
        charts=_charts(train, evals, summary),
        parts=_parts(config["model"]),
        source=_source(config["data"]),
        optim=_fields(config["train"]["optim"]),
        schedule=_fields(config["train"]["schedule"]),
        budget=_fields(config["train"]["budget"]),
        mfu=_median([r["mfu_causal"] for r in train if r.get("mfu_causal") is not None]),
        skipped=len(skipped_at(train)),
    )


def _source(data: dict[str, Any]) -> dict[str, str]:
    """What was read: names of the sources, and the settings of a single one."""
    if data.get("sources"):
        return {"names": ", ".join(data["sources"]), "settings": ""}
    if data.get("store"):
        return {"names": data["store"], "settings": ""}
    return {"names": data["source"]["name"], "settings": _fields(data["source"])}


def bpb_chart(train: list[dict[str, Any]], evals: list[dict[str, Any]], summary: dict[str, Any] | None) -> Chart:
    """Bits per byte over training tokens; once finished, with the final figure and the compressors beside it."""
    lines = [Line("training batches", *_curve(train, "bpb"))]
    if evals:
        x = [t / 1e6 for t in tokens_at([r["step"] for r in evals], train)]
        lines.append(Line("held-out sample", x, [r["heldout_bpb"] for r in evals], marked=True))
    final = (summary or {}).get("bpb")
    if final is not None:
        lines.append(Line(f"all held-out documents: {final:.3f}", [train[-1]["tokens"] / 1e6], [final]))
    references = (summary or {}).get("baselines") or {}
    values = [v for line in lines for v in line.y] + list(references.values())
    return Chart(TOKENS, "bits per byte", lines, references, y_range=_readable(values))


def source_chart(train: list[dict[str, Any]], evals: list[dict[str, Any]]) -> Chart | None:
    """Held-out bits per byte of each source, if there are several."""
    records = [r for r in evals if r.get("heldout_bpb_by_source")]
    names = sorted({name for r in records for name in r["heldout_bpb_by_source"]})
    if not names:
        return None
    lines = []
    for name in names:
        own = [r for r in records if name in r["heldout_bpb_by_source"]]
        x = [t / 1e6 for t in tokens_at([r["step"] for r in own], train)]
        lines.append(Line(name, x, [r["heldout_bpb_by_source"][name] for r in own], marked=True))
    return Chart(TOKENS, "held-out bits per byte", lines, y_range=_readable([v for line in lines for v in line.y]))


def tokens_at(steps: list[int], train: list[dict[str, Any]]) -> list[float]:
    """Tokens seen at given steps; between two records in proportion, since a batch may grow."""
    import numpy as np

    known = [(0, 0), *((r["step"], r["tokens"]) for r in train)]
    if steps and steps[-1] > known[-1][0] > 0:  # evaluated after the last record that was written
        known.append((steps[-1], round(known[-1][1] * steps[-1] / known[-1][0])))
    result: list[float] = np.interp(steps, [step for step, _ in known], [tokens for _, tokens in known]).tolist()
    return result


def skipped_at(train: list[dict[str, Any]]) -> list[float]:
    """Tokens (millions) of the records by which more steps had been skipped than before."""
    counts = [0, *(r.get("skipped", 0) for r in train)]
    return [r["tokens"] / 1e6 for before, r in zip(counts, train, strict=False) if r.get("skipped", 0) > before]


def _readable(values: list[float]) -> tuple[float, float] | None:
    """The range to show: the first steps lie so high that they would flatten all that follows."""
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return None
    low, high = min(values), max(values)
    high = min(high, max(statistics.median(values), low) + 1.2)
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def _charts(train: list[dict[str, Any]], evals: list[dict[str, Any]], summary: dict[str, Any] | None) -> dict[str, str]:
    """The page's charts; of what wasn't recorded there is none."""
    marks = skipped_at(train)
    by_source = source_chart(train, evals)
    charts = {"bpb": draw(bpb_chart(train, evals, summary)), "sources": draw(by_source) if by_source else ""}
    for name, key, label, scale in (
        ("loss", "loss", "loss (nats per token)", 1.0),
        ("lr", "lr", "learning rate", 1.0),
        ("grad_norm", "grad_norm", "gradient norm", 1.0),
        ("speed", "tokens_per_s", "tokens per second", 1.0),
        ("mfu", "mfu_causal", "model FLOPs utilisation", 1.0),
        ("memory", memory_key(train), "memory (GiB)", 2.0**-30),
    ):
        x, y = _curve(train, key, scale)
        small = Chart(
            TOKENS, label, [Line(key, x, y)], wide=False, marks=marks if name in ("loss", "grad_norm") else ()
        )
        charts[name] = draw(small) if x else ""
    return charts


def _curve(train: list[dict[str, Any]], key: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    """(tokens in millions, values) of the records that have ``key``, few enough to draw."""
    there = [r for r in train if isinstance(r.get(key), int | float)]
    return thinned([r["tokens"] / 1e6 for r in there], [r[key] * scale for r in there])


def memory_key(train: list[dict[str, Any]]) -> str:
    """The record's field of the memory in use, in bytes."""
    return next((key for key in train[-1] if "memory" in key and key.endswith("bytes")), "memory_bytes")


def _bars(summary: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The headline comparison: the model first, then the compressors; widths are shares of the largest."""
    if not summary or summary.get("bpb") is None:
        return []
    own = summary["bpb"]
    rows = {"this model": own, **(summary.get("baselines") or {})}
    return [
        {"name": name, "value": value, "width": 100 * value / max(rows.values()), "own": i == 0, "gain": 100 * (1 - own / value)}
        for i, (name, value) in enumerate(rows.items())
    ]  # fmt: skip


def _parts(model: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(slot, part, fields) of every slot of the resolved model."""
    return [
        (slot, part["name"], _fields(part)) for slot, part in model.items() if isinstance(part, dict) and "name" in part
    ]


def _fields(part: dict[str, Any]) -> str:
    """A part's fields but its name, as one reads them."""
    return ", ".join(f"{key}={value}" for key, value in part.items() if key != "name" and value is not None)


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
