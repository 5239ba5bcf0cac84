"""`slm train`: launch a recipe, or go on with it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm.cli.asked import BranchFrom, Profile, as_overrides, branched
from slm.cli.output import JsonFlag, Overrides, Recipe, console, emit_json
from slm.config.errors import RESUMABLE, ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from slm.run import Run


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
    from slm.config.compose import compose_all, expand_sweep
    from slm.run import Run, check_name

    given = as_overrides(overrides, branch_from, profile)
    combinations = expand_sweep(given) if multirun else [given]
    out = console(json)
    if len(combinations) > 1 and _speaks():
        out.print(f"A sweep of {len(combinations):,} runs: composing all of them before the first one starts.")
    composed = compose_all(recipe, combinations, schema=Run)
    runs = [one.config for one in composed]
    if len(combinations) > 1:
        runs = [_member(run, given, c) for run, c in zip(runs, combinations, strict=True)]
    begins = [run.log.branch_from is not None and run.train.branch is None for run in runs]
    runs = [branched(run) for run in runs]
    for run in runs:
        check_name(run)
    _refuse_shared_places(runs)
    if not any(o.startswith(("name=", "log.dir=")) for o in given):
        _refuse_elsewhere(recipe, [run for run, new in zip(runs, begins, strict=True) if not new])
    summaries = [_launch(run, one.notes, out) for run, one in zip(runs, composed, strict=True)]
    if json:
        emit_json(summaries[0] if len(summaries) == 1 else {"runs": summaries})


def _speaks() -> bool:
    """Whether this process prints: the main one of those that torchrun started, or the only one."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1 or int(os.environ.get("RANK", 0)) == 0


def _member(run: "Run", given: list[str], combination: list[str]) -> "Run":
    """A run of a sweep, named by what varies in it: ``quickstart/train.seed=1``. Raises `ConfigError` if that is too long."""
    from slm.run import LONGEST

    swept = ",".join(o for o, g in zip(combination, given, strict=True) if o != g).replace("/", ".")
    if len(swept.encode()) > LONGEST:
        raise ConfigError(
            f"-m: a sweep's runs have directories named by what varies, and {swept[:60]!r}... has {len(swept.encode())} bytes, more than the "
            f"{LONGEST} of a directory's name. Vary less at a time, or start runs with such long values one by one, each with a name of its own (name=...)."
        )
    return run.with_(name=f"{run.name}/{swept}")


def _refuse_shared_places(runs: "list[Run]") -> None:
    """Raise `ConfigError` if two runs of a sweep have one directory: the second would be refused after the first was trained."""
    from slm.train.rundir import run_dir_of

    places = Counter(run_dir_of(run) for run in runs)
    place, count = places.most_common(1)[0]
    if count == 1:
        return
    first = next(run for run in runs if run_dir_of(run) == place)
    why = (
        "log.dir is the same for them. Leave it out, and each has a directory runs/NAME/VALUES"
        if first.log.dir
        else "they have the same values, or values that differ only in '/' and '.'. Name each value once"
    )
    raise ConfigError(f"{count:,} of the {len(runs):,} runs of this sweep would share the directory {place}: {why}.")


def _refuse_elsewhere(recipe: str, runs: "list[Run]") -> None:
    """Raise `ConfigError` if a run's own config.yaml would begin the run anew in another place: it was moved, or one is in another
    directory than it was started from."""
    from pathlib import Path

    from slm.checkpoint import latest
    from slm.train.rundir import run_dir_of

    home = Path(recipe).resolve().parent
    if Path(recipe).name != "config.yaml" or latest(home) is None:
        return
    for run in runs:
        if (
            run_dir_of(run).resolve() != home
            and home not in run_dir_of(run).resolve().parents
            and latest(run_dir_of(run)) is None
        ):
            raise ConfigError(
                f"{recipe} is of a run with checkpoints, but from here it would begin anew in {run_dir_of(run)}. To go on with the run: "
                f"log.dir={home}. To begin another one: name=..."
            )


def _launch(run: "Run", notes: list[str], out: "Console") -> dict[str, Any]:
    from slm.pipeline import launch

    for note in notes if _speaks() else []:
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
