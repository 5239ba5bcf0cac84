"""What a study shows: JSON for scripts, a page for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slm.config.errors import RunError
from slm.report.charts import Chart, Line, draw
from slm.report.page import render, write
from slm.study.heldout import NOT_COMPARABLE, unlike
from slm.study.plan import Planned, Study, study_dir
from slm.study.runner import result_of
from slm.study.statistics import Comparison, compare
from slm.train.metrics import read_metrics

VERDICTS = {
    "win": "{arm} wins over {control}: {delta:+.4f} bits per byte, {level:.0%} interval [{low:+.4f}, {high:+.4f}]",
    "lose": "{arm} loses to {control}: {delta:+.4f} bits per byte, {level:.0%} interval [{low:+.4f}, {high:+.4f}]",
    "equivalent": "{arm} and {control} are equivalent within ±{margin}: {delta:+.4f}, {level:.0%} interval [{low:+.4f}, {high:+.4f}]",
    "undecided": "{arm} against {control} is undecided: {delta:+.4f} bits per byte",
}


def report(study: Study, runs: Sequence[Planned]) -> dict[str, Any]:
    """The JSON of `slm study report`. Raises `RunError` if no arm can be compared yet."""
    summaries = {(p.arm, p.seed): result_of(p) for p in runs}
    results = {
        arm: {seed: s["bpb"] for (a, seed), s in summaries.items() if a == arm and s is not None} for arm in study.arms
    }
    missing = [f"{arm} seed {seed}" for (arm, seed), s in summaries.items() if s is None]
    if not results[study.control] or all(not v for arm, v in results.items() if arm != study.control):
        raise RunError(
            f"study {study.name}: nothing to compare yet. Missing: {', '.join(missing)}. Run `slm study run` first."
        )
    apart = unlike(study, runs)
    alike = {arm: values for arm, values in results.items() if arm not in apart}
    comparisons, noise = compare(alike, study.control, margin=study.margin, confidence=study.confidence)
    mismatch = residual_mismatch(study, runs)
    compared = {c.name: c for c in comparisons}
    control = results[study.control]
    arms = [
        {"name": study.control, "n": len(control), "loss": sum(control.values()) / len(control), "verdict": "control"}
    ]
    for arm, own in results.items():
        if arm in compared:
            arms.append(_compared(study, compared[arm], mismatch[arm]))
        elif arm in apart and own.keys() & control.keys():
            arms.append(_apart(arm, own, len(own.keys() & control.keys()), mismatch[arm], apart[arm]))
    return {
        "study": study.name,
        "question": study.question,
        "metric": "held-out bits per byte",
        "control": study.control,
        "arms": arms,
        "noise": asdict(noise),
        "margin": study.margin,
        "confidence": study.confidence,
        "seeds": list(study.seeds),
        "missing": missing,
        "runs": [
            {
                "arm": p.arm,
                "seed": p.seed,
                "identity": p.run.identity,
                "bpb": (summaries[p.arm, p.seed] or {}).get("bpb"),
                "heldout": (summaries[p.arm, p.seed] or {}).get("heldout"),
            }
            for p in runs
        ],
    }


def _compared(study: Study, c: Comparison, mismatch: dict[str, float]) -> dict[str, Any]:
    """An arm that was compared with the control."""
    return {
        "name": c.name,
        "n": c.n,
        "loss": c.mean,
        "delta": c.delta,
        "ci": list(c.ci) if c.ci else None,
        "p_adjusted": c.p_adjusted,
        "verdict": c.verdict,
        "residual_mismatch": mismatch,
        "sentence": _sentence(study, c),
    }


def _apart(arm: str, own: dict[int, float], n: int, mismatch: dict[str, float], why: str) -> dict[str, Any]:
    """An arm that was scored on other text than the control."""
    return {
        "name": arm,
        "n": n,
        "loss": sum(own.values()) / len(own),
        "delta": None,
        "ci": None,
        "p_adjusted": None,
        "verdict": NOT_COMPARABLE,
        "residual_mismatch": mismatch,
        "sentence": why,
    }


def residual_mismatch(study: Study, runs: Sequence[Planned]) -> dict[str, dict[str, float]]:
    """How far each arm is from the control in parameters, FLOPs per token and tokens, in percent."""

    def figures(arm: str) -> dict[str, float]:
        run = next(p.run for p in runs if p.arm == arm)
        cost = run.costs()
        steps = run.train.budget.total_steps(cost, run.train.batch_tokens)
        return {
            "params": cost.params["unique"],
            "flops_per_token": cost.flops_per_token["train"],
            "tokens": steps * run.train.batch_tokens,
        }

    base = figures(study.control)
    return {
        arm: {k: 100 * (v / base[k] - 1) for k, v in figures(arm).items()} for arm in study.arms if arm != study.control
    }


def write_report(
    study: Study, runs: Sequence[Planned], root: Path | str = "runs/studies"
) -> tuple[dict[str, Any], Path]:
    """Write ``report.html`` and ``report.json`` into the study's directory; returns the JSON and the page's path."""
    result = report(study, runs)
    folder = study_dir(study, root)
    write(folder / "report.json", json.dumps(result, indent=1))
    notes = sorted({f"{p.arm}: {note}" for p in runs for note in p.run.notes})
    apart = {a["name"] for a in result["arms"] if a["verdict"] == NOT_COMPARABLE}
    lines = [line for arm in study.arms if (line := _curve(arm, runs, other_text=arm in apart)) is not None]
    charts = {"curves": draw(_chart(lines)) if lines else ""}
    return result, write(
        folder / "report.html", render("study.html.j2", title=study.name, result=result, notes=notes, charts=charts)
    )


def _chart(lines: list[Line]) -> Chart:
    top = sorted(v for line in lines for v in line.high)
    lowest, highest = min(v for line in lines for v in line.low), top[int(0.95 * (len(top) - 1))]
    return Chart("training tokens (millions)", "held-out bits per byte", lines, y_range=(lowest - 0.05, highest + 0.05))


def _curve(arm: str, runs: Sequence[Planned], *, other_text: bool) -> Line | None:
    """An arm's evaluations over tokens: mean over seeds, with the range as a band."""
    series = [s for p in runs if p.arm == arm and (s := _evaluations(p))]
    if not series:
        return None
    steps = sorted(set.intersection(*(set(s) for s in series)))
    if not steps:
        return None
    values = [[s[step] for s in series] for step in steps]
    batch = next(p.run.train.batch_tokens for p in runs if p.arm == arm)
    return Line(
        f"{arm} (other text)" if other_text else arm, [s * batch / 1e6 for s in steps], [sum(v) / len(v) for v in values],
        [min(v) for v in values], [max(v) for v in values], marked=True,
    )  # fmt: skip


def _evaluations(planned: Planned) -> dict[int, float]:
    """Held-out bits per byte by step, where they are a number."""
    records = read_metrics(planned.dir / "metrics.jsonl")
    return {r["step"]: r["heldout_bpb"] for r in records if r.get("heldout_bpb") is not None}


def _sentence(study: Study, c: Comparison) -> str:
    low, high = c.ci or (float("nan"), float("nan"))
    text = VERDICTS[c.verdict].format(
        arm=c.name,
        control=study.control,
        delta=c.delta,
        low=low,
        high=high,
        level=study.confidence,
        margin=study.margin,
    )
    if c.verdict == "undecided":
        text += (
            f", {study.confidence:.0%} interval [{low:+.4f}, {high:+.4f}]; more seeds are needed"
            if c.ci
            else "; two seeds or more are needed"
        )
    return text + "."
