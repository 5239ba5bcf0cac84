"""The page of a run, from the files in its directory: metrics.jsonl, config.yaml and, once finished, summary.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from slm.config.errors import RunError
from slm.report.charts import Chart, Line, draw
from slm.report.page import render, write


def write_run_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory; an unfinished run gets a page that says so."""
    records = _records(run_dir / "metrics.jsonl")
    summary_file = run_dir / "summary.json"
    summary = json.loads(summary_file.read_text()) if summary_file.exists() else None
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    train = [r for r in records if r["kind"] == "train"]
    if not train:
        raise RunError(f"{run_dir} has no training records yet, so there is nothing to report.")
    page = render(
        "run.html.j2",
        title=config["name"],
        summary=summary,
        last=train[-1],
        config=config,
        config_text=(run_dir / "config.yaml").read_text(),
        bars=_bars(summary),
        charts=_charts(train, [r for r in records if r["kind"] == "eval"], (summary or {}).get("baselines") or {}),
        parts=_parts(config["model"]),
    )
    return write(run_dir / "report.html", page)


def bpb_chart(train: list[dict[str, Any]], evals: list[dict[str, Any]], baselines: dict[str, float]) -> Chart:
    """Bits per byte over training tokens, with the compressors as reference lines."""
    per_step = train[-1]["tokens"] / train[-1]["step"]
    lines = [Line("training rows", [r["tokens"] / 1e6 for r in train], [r["bpb"] for r in train])]
    if evals:
        x = [r["step"] * per_step / 1e6 for r in evals]
        lines.append(Line("held-out rows", x, [r["heldout_bpb"] for r in evals], marked=True))
    values = [v for line in lines for v in line.y] + list(baselines.values())
    top = min(max(values), 3.2)  # the first steps would flatten all that follows
    return Chart(
        "training tokens (millions)", "bits per byte", lines, baselines, y_range=(min(values) - 0.12, top + 0.05)
    )


def _charts(train: list[dict[str, Any]], evals: list[dict[str, Any]], baselines: dict[str, float]) -> dict[str, str]:
    tokens = [r["tokens"] / 1e6 for r in train]

    def small(key: str, label: str) -> str:
        return draw(
            Chart("training tokens (millions)", label, [Line(key, tokens, [r[key] for r in train])], wide=False)
        )

    return {
        "bpb": draw(bpb_chart(train, evals, baselines)),
        "loss": small("loss", "loss (nats per token)"),
        "lr": small("lr", "learning rate (peak group)"),
        "grad_norm": small("grad_norm", "gradient norm"),
        "speed": small("tokens_per_s", "tokens per second"),
    }


def _bars(summary: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The headline comparison: the model first, then the compressors; widths are shares of the largest."""
    if not summary or summary.get("bpb") is None:
        return []
    rows = {"this model": summary["bpb"], **(summary.get("baselines") or {})}
    return [
        {"name": name, "value": value, "width": 100 * value / max(rows.values()), "own": name == "this model"}
        for name, value in rows.items()
    ]


def _parts(model: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(slot, part, fields) of every slot of the resolved model."""
    return [
        (slot, part["name"], ", ".join(f"{k}={v}" for k, v in part.items() if k != "name" and v is not None))
        for slot, part in model.items()
        if isinstance(part, dict) and "name" in part
    ]


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise RunError(f"{path.parent} is no run directory: it has no metrics.jsonl.")
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
