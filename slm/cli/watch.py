"""`slm watch`: how runs stand, from their files."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from slm.cli.output import JsonFlag, console, emit_json

Runs = Annotated[list[str], typer.Argument(help="Run directories, or names under runs/; several share their charts.")]
PIPE_COLUMNS, PIPE_LINES = 110, 40
"""Size of a frame where there is no terminal to ask."""


def register(app: typer.Typer) -> None:
    app.command("watch")(watch)


def watch(
    runs: Runs,
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame and end, as where there is no terminal.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 2.0,
    json: JsonFlag = False,
) -> None:
    """Watch runs live: state, progress and curves. It ends when all are finished, or on Ctrl-C.

    It reads their files only, so a run may be in another process, or on another machine with a shared disk.
    """
    from slm.report.find import find_run
    from slm.watch.state import Watched
    from slm.watch.view import frame

    watched = [Watched(find_run(name)) for name in runs]
    if json:
        found = [run.look().as_json() for run in watched]
        emit_json(found[0] if len(found) == 1 else {"runs": found})
        return
    out = console()
    if not out.is_terminal:
        out.width, out.height = PIPE_COLUMNS, PIPE_LINES
    now = [run.look() for run in watched]
    if out.is_terminal and not once:
        from rich.live import Live

        try:
            with Live(console=out, auto_refresh=False, screen=True) as live:
                while True:
                    live.update(frame(watched, now, out.width, out.height), refresh=True)
                    if all(snapshot.state == "finished" for snapshot in now):
                        break
                    time.sleep(interval)
                    now = [run.look() for run in watched]
        except KeyboardInterrupt:
            pass  # how one leaves it
    out.print(frame(watched, now, out.width, out.height))
