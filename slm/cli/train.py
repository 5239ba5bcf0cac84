"""`slm train`: launch a recipe, or go on with it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from slm.cli.asked import BranchFrom, Profile, as_overrides, branched
from slm.cli.output import JsonFlag, Overrides, Recipe, console, emit_json
from slm.config.errors import RESUMABLE


def register(app: typer.Typer) -> None:
    app.command("train")(train)


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    branch_from: BranchFrom = None,
    profile: Profile = 0,
    multirun: Annotated[bool, typer.Option("-m", "--multirun", help="Run every combination of a=1,2 b=x,y.")] = False,
    json: JsonFlag = False,
) -> None:
    """Train a recipe from nothing to a report: `slm train quickstart model/ffn=relu2 train.seed=1`."""
    from slm.config.compose import compose, expand_sweep
    from slm.run import Run

    given = as_overrides(overrides, branch_from, profile)
    combinations = expand_sweep(given) if multirun else [given]
    composed = [compose(recipe, c, schema=Run) for c in combinations]  # all of them, before the first one starts
    summaries = []
    for combination, one in zip(combinations, composed, strict=True):
        run = one.config
        if len(combinations) > 1:
            swept = ",".join(o for o, g in zip(combination, given, strict=True) if o != g).replace("/", ".")
            run = run.with_(name=f"{run.name}/{swept}", notes=run.notes)
        summaries.append(_launch(branched(run), one.notes, json))
    if json:
        emit_json(summaries[0] if len(summaries) == 1 else {"runs": summaries})


def _launch(run, notes: list[str], json: bool) -> dict:  # type: ignore[no-untyped-def, type-arg]
    from slm.pipeline import launch

    out = console(json)
    for note in notes:
        out.print(note, markup=False)
    command = " ".join(["slm", *sys.argv[1:]])
    summary = launch(run, console=out, command=command)
    if summary["interrupted"]:
        raise typer.Exit(RESUMABLE)
    _closing(summary, run, out)
    return summary


def _closing(summary, run, out) -> None:  # type: ignore[no-untyped-def]
    """What was made, where it is, what to try next."""
    if "times" not in summary:
        return  # a helper process under torchrun: the main one prints
    from rich.panel import Panel

    lines = []
    if summary["bpb"] is not None:
        rows = [f"{'this model':>10} {summary['bpb']:.4f}"]
        rows += [f"{name:>10} {value:.4f}" for name, value in summary["baselines"].items()]
        lines += ["Bits per byte on held-out documents", *(f"  {row}" for row in rows), ""]
    times = summary["times"]
    lines.append(
        f"Time        prepare {times['prepare']:.1f} s, train {times['train']:.1f} s, finish {times['finish']:.1f} s"
    )
    for e in summary["export"]:
        proof = f"max |logit difference| {e['max_abs_diff']:.1e}" if e["verified"] else f"not exported: {e['error']}"
        lines.append(f"Export      {e['path'] or e['target']} ({proof})")
    folder = summary.get("run_dir") or run.log.dir or f"runs/{run.name}"
    lines.append(f"Checkpoint  {folder}")
    if summary["report"]:
        lines.append(f"Report      {summary['report']}")
    if run.name == "quickstart":
        lines += [
            "",
            "Try next",
            f'  slm generate {folder} "def main("',
            "  slm train quickstart model/attention=mha name=quickstart-mha",
            "  slm plan quickstart train.budget.tokens_per_param=20",
            "  slm study run recipes/studies/toy-position.yaml",
        ]
    from rich.text import Text

    out.print(Panel(Text("\n".join(lines)), title=summary["name"], expand=False))
