"""The page of a run, from the files in its directory: metrics.jsonl, config.yaml and, once finished, summary.json."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import yaml

from slm.config.errors import RunError
from slm.report.charts import Chart, Line, draw
from slm.report.page import render, write

TOKENS = "training tokens (millions)"


def write_run_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory; an unfinished run gets a page that says so."""
    records = _records(run_dir / "metrics.jsonl")
    summary_file = run_dir / "summary.json"
    summary = json.loads(summary_file.read_text()) if summary_file.exists() else None
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    train = [r for r in records if r["kind"] == "train"]
    if not train:
        raise RunError(f"{run_dir} has no training records yet, so there is nothing to report.")
    evals = [r for r in records if r["kind"] == "eval"]
    page = render(
        "run.html.j2",
        title=config["name"],
        summary=summary,
        last=train[-1],
        evaluated=evals[-1] if evals else None,
        config=config,
        config_text=(run_dir / "config.yaml").read_text(),
        command=(summary or {}).get("command") or f"slm train {run_dir / 'config.yaml'}",
        bars=_bars(summary),
        charts=_charts(train, evals, summary),
        parts=_parts(config["model"]),
        source=_source(config["data"]),
        optim=_fields(config["train"]["optim"]),
        schedule=_fields(config["train"]["schedule"]),
        budget=_fields(config["train"]["budget"]),
        mfu=_median([r["mfu_causal"] for r in train if r["mfu_causal"] is not None]),
    )
    return write(run_dir / "report.html", page)


def _source(data: dict[str, Any]) -> dict[str, str]:
    """What was read: names of the sources, and the settings of a single one."""
    if data.get("sources"):
        return {"names": ", ".join(data["sources"]), "settings": ""}
    if data.get("store"):
        return {"names": data["store"], "settings": ""}
    return {"names": data["source"]["name"], "settings": _fields(data["source"])}


def bpb_chart(train: list[dict[str, Any]], evals: list[dict[str, Any]], summary: dict[str, Any] | None) -> Chart:
    """Bits per byte over training tokens; once finished, with the final figure and the compressors beside it."""
    per_step = train[-1]["tokens"] / train[-1]["step"]
    lines = [Line("training batches", [r["tokens"] / 1e6 for r in train], [r["bpb"] for r in train])]
    if evals:
        x = [r["step"] * per_step / 1e6 for r in evals]
        lines.append(Line("held-out sample", x, [r["heldout_bpb"] for r in evals], marked=True))
    final = (summary or {}).get("bpb")
    if final is not None:
        lines.append(Line(f"all held-out documents: {final:.3f}", [train[-1]["tokens"] / 1e6], [final]))
    references = (summary or {}).get("baselines") or {}
    values = [v for line in lines for v in line.y if math.isfinite(v)] + list(references.values())
    return Chart(TOKENS, "bits per byte", lines, references, y_range=_readable(values))


def _readable(values: list[float]) -> tuple[float, float] | None:
    """The range to show: the first steps lie so high that they would flatten all that follows."""
    if not values:
        return None
    low, high = min(values), max(values)
    high = min(high, max(statistics.median(values), low) + 1.2)
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def _charts(train: list[dict[str, Any]], evals: list[dict[str, Any]], summary: dict[str, Any] | None) -> dict[str, str]:
    tokens = [r["tokens"] / 1e6 for r in train]

    def small(key: str, label: str) -> str:
        return draw(Chart(TOKENS, label, [Line(key, tokens, [r[key] for r in train])], wide=False))

    return {
        "bpb": draw(bpb_chart(train, evals, summary)),
        "loss": small("loss", "loss (nats per token)"),
        "lr": small("lr", "learning rate"),
        "grad_norm": small("grad_norm", "gradient norm before clipping"),
        "speed": small("tokens_per_s", "tokens per second"),
    }


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


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise RunError(f"{path.parent} is no run directory: it has no metrics.jsonl.")
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
