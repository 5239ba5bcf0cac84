"""`slm parts`: the registry."""

from __future__ import annotations

from typing import Annotated

import typer

from slm.cli.output import JsonFlag, Plugins, emit_json, table


def register(app: typer.Typer) -> None:
    app.command("parts")(parts)


def parts(
    name: Annotated[str | None, typer.Argument(help="A part, or a slot.")] = None,
    plugins: Plugins = None,
    json: JsonFlag = False,
) -> None:
    """List every part with its paper; with a name, its fields and defaults."""
    import slm.data.importers
    import slm.run  # noqa: F401  both register their slots
    from slm.config.compose import import_plugins
    from slm.config.describe import describe_part, list_parts

    import_plugins(plugins or [])
    found = list_parts() if name is None else [p for p in list_parts() if name in (p["slot"], p["name"])]
    if name is not None and name not in {p["slot"] for p in found}:
        details = describe_part(name)
        if json:
            emit_json({"parts": details})
        for part in [] if json else details:
            typer.echo(f"{part['slot']}: {part['name']}\n  {part['summary']}\n  {part['paper']}".rstrip())
            table(
                ["field", "type", "default", "meaning"],
                [[f[k] for k in ("name", "type", "default", "meaning")] for f in part["fields"]],
            )
        return
    if json:
        emit_json({"parts": found})
    else:
        table(
            ["slot", "part", "what it is", "paper"], [[p["slot"], p["name"], p["summary"], p["paper"]] for p in found]
        )
