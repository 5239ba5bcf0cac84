"""`slm doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import typer

from slm.cli.output import JsonFlag, emit_json, table


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(json: JsonFlag = False) -> None:
    """Show devices, optional packages and speeds, with a hint for what is missing."""
    from slm.train.doctor import examine

    found = examine()
    if json:
        emit_json(found)
    else:
        table(["what", "here", "hint"], [[c["name"], c["value"], c["hint"]] for c in found["checks"]])
