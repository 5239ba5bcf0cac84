"""`slm study`: run an ablation and say what it shows."""

from __future__ import annotations

from typing import Annotated

import typer

from slm.cli.output import JsonFlag, console, emit_json, table

File = Annotated[str, typer.Argument(help="A study file (.yaml).")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="Runs at a time; by default one per core, two at most.")
]


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Ablations with seeds and verdicts.", no_args_is_help=True, rich_markup_mode=None)
    verbs.command("plan")(plan)
    verbs.command("run")(run)
    verbs.command("report")(report)
    app.add_typer(verbs, name="study")


def plan(file: File, json: JsonFlag = False) -> None:
    """List a study's runs, and how well the arms are matched."""
    from slm.study.heldout import unlike
    from slm.study.plan import plan_study, read_study
    from slm.study.report import residual_mismatch
    from slm.study.runner import result_of

    study = read_study(file)
    runs = plan_study(study)
    mismatch, apart = residual_mismatch(study, runs), unlike(study, runs)
    if json:
        listed = [
            {
                "arm": p.arm,
                "seed": p.seed,
                "identity": p.run.identity,
                "dir": str(p.dir),
                "finished": result_of(p) is not None,
            }
            for p in runs
        ]
        emit_json(
            {
                "study": study.name,
                "control": study.control,
                "runs": listed,
                "residual_mismatch": mismatch,
                "not_comparable": apart,
            }
        )
        return
    table(
        ["arm", "seed", "experiment", "finished"],
        [[p.arm, p.seed, p.run.identity, "yes" if result_of(p) else ""] for p in runs],
    )
    for arm, figures in mismatch.items():
        typer.echo(f"{arm} against {study.control}: " + ", ".join(f"{k} {v:+.2f} %" for k, v in figures.items()))
    for sentence in apart.values():
        typer.echo(f"Warning: {sentence}")


def run(file: File, jobs: Jobs = None, json: JsonFlag = False) -> None:
    """Make all runs that aren't finished, then report."""
    from slm.config.cores import usable_cores
    from slm.data.prepare import prepare
    from slm.study.heldout import unlike
    from slm.study.plan import plan_study, read_study
    from slm.study.report import write_report
    from slm.study.runner import run_study

    study = read_study(file)
    cores = usable_cores()
    jobs = jobs or min(2, cores)
    runs = plan_study(study, threads=max(1, cores // jobs))
    out = console(json)
    for sentence in unlike(study, runs).values():
        out.print(f"Warning: {sentence}", markup=False, highlight=False)
    for experiment in {
        p.run.tokenizer.model_dump_json() + p.run.data.model_dump_json(exclude={"seed"}): p.run for p in runs
    }.values():
        prepare(experiment.data, experiment.tokenizer, experiment.impl.data_dir)  # once, not by every run
    run_study(runs, jobs=jobs, say=lambda text: out.print(text, markup=False, highlight=False))
    _show(*write_report(study, runs), json)


def report(file: File, json: JsonFlag = False) -> None:
    """Compare the finished runs and write the page."""
    from slm.study.plan import plan_study, read_study
    from slm.study.report import write_report

    study = read_study(file)
    _show(*write_report(study, plan_study(study)), json)


def _show(result, page, json: bool) -> None:  # type: ignore[no-untyped-def]
    if json:
        emit_json(result)
        return
    rows = []
    for arm in result["arms"]:
        ci = arm.get("ci")
        interval = f"[{ci[0]:+.4f}, {ci[1]:+.4f}]" if ci else ""
        delta = f"{arm['delta']:+.4f}" if arm.get("delta") is not None else ""
        rows.append([arm["name"], arm["n"], f"{arm['loss']:.4f}", delta, interval, arm["verdict"]])
    table(["arm", "seeds", "bits/byte", "difference", "interval", "verdict"], rows, right=(1, 2, 3, 4))
    for arm in result["arms"]:
        if "sentence" in arm:
            typer.echo(arm["sentence"])
    typer.echo(f"Report: {page}")
