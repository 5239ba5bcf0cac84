"""`slm bench`: how fast things are, beside their peers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from slm.cli.output import JsonFlag, console, emit_json, table


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Measurements beside peers.", no_args_is_help=True, rich_markup_mode=None)
    verbs.callback()(lambda: None)  # keeps `data` a verb of its own while there is no other
    verbs.command("data")(data)
    app.add_typer(verbs, name="bench")


def data(
    only: Annotated[
        list[str] | None,
        typer.Option(help="Measure this alone (may be repeated): tokenise, load, pack, resume, memory."),
    ] = None,
    mb: Annotated[
        float, typer.Option(help="Megabytes of text; everything else grows with it. 1 is a quick look.")
    ] = 50,
    repeats: Annotated[int, typer.Option(help="How often ours and the peer's take turns.")] = 3,
    work: Annotated[
        Path | None, typer.Option(help="Keep what is measured on here, for a next time (a gigabyte or two).")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table into this file, for the docs.")] = None,
    json: JsonFlag = False,
) -> None:
    """Tokenising, loading, packing, resuming and memory, beside datatrove and Grain on the same bytes.

    Peers and fast backends: pip install 'slm[bench]'. One that is missing is named and left out.
    """
    from slm.bench import results as r
    from slm.bench.data import run

    out = console(json)
    report, results = run(
        only or (),
        mb=mb,
        repeats=repeats,
        work=work,
        tell=lambda name: out.print(f"measuring: {name}"),
        found=lambda one: out.print("  " + "  ".join(cell for cell in r.rows([one])[0] if cell), markup=False),
    )
    if markdown is not None:
        flags = [f"--only {shlex.quote(name)}" for name in only or ()]
        command = " ".join(["slm bench data", *flags, f"--mb {mb:g} --repeats {repeats} --markdown {markdown.name}"])
        markdown.write_text(r.markdown(report, results, command))
    if json:
        emit_json({**report, "results": [one.as_dict() for one in results]})
        return
    table(list(r.COLUMNS), r.rows(results), right=(1, 4, 5, 6))
    for note in dict.fromkeys(one.note for one in results if one.note):
        typer.echo(f"- {note}")
