"""How verbs print: a console for people, one JSON object for scripts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Recipe = Annotated[str, typer.Argument(help="A recipe by name, or a path to a .yaml file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value for any field; model/attention=mha to swap a part; model=NAME for another preset."),
]


Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugins", help="Modules with parts of your own; imported only because you say so."),
]

PIPE_WIDTH = 160
"""Columns where there is no terminal to ask."""


def emit_json(value: Any) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(value, indent=1))


def console(json_wanted: bool = False) -> "Console":
    """Where people read: standard output, or standard error when that belongs to JSON."""
    from rich.console import Console

    out = Console(stderr=json_wanted, quiet=json_wanted, highlight=False)
    if not out.is_terminal:
        out.width = PIPE_WIDTH
    return out


def table(columns: list[str], rows: list[list[Any]], *, right: tuple[int, ...] = ()) -> None:
    """Print rows under headings; columns in ``right`` are numbers."""
    from rich import box
    from rich.table import Table

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        out.add_column(name, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        out.add_row(*(str(cell) for cell in row))
    console().print(out, markup=False)
