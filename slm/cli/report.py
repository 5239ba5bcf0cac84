"""`slm report`: a run's page, or one page for several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slm.cli.output import JsonFlag, emit_json
from slm.cli.watch import Runs
from slm.config.errors import ConfigError


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option(help="The page; by default <run>/report.html, or comparison.html for several runs.")
    ] = None,
    x: Annotated[
        str | None, typer.Option("--x", help="First x axis of a comparison: tokens (the default), steps, flops, hours.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write a self-contained page of a run, finished or not; of several, one page that compares them."""
    from slm.report.find import find_run

    if x is not None and len(runs) == 1:
        raise ConfigError(
            f"--x={x} is for a comparison, and {runs[0]!r} is one run, whose page is drawn over training tokens. Name a second run, or leave "
            "--x out."
        )

    places = [find_run(name) for name in runs]
    if len(places) == 1:
        from slm.report.run import write_run_report

        page = write_run_report(places[0], out)
    else:
        from slm.report.compare import write_comparison
        from slm.watch.facts import flops_per_token

        page = write_comparison(places, out or Path("comparison.html"), flops_per_token, x or "tokens")
    if json:
        emit_json({"page": str(page), "runs": [str(p) for p in places]})
    else:
        typer.echo(f"Report: {page}")
