"""`slm model import`: a Hugging Face checkpoint directory as a run of slm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slm.cli.output import JsonFlag, emit_json


def import_model(
    directory: Annotated[Path, typer.Argument(help="A directory with config.json and *.safetensors.")],
    out: Annotated[
        Path | None, typer.Option(help="The run directory to make; by default runs/<name of DIRECTORY>.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Load a Hugging Face checkpoint, and keep it as a run that eval, generate and export can use."""
    from slm.export.importing import read_directory, save_import

    run_dir = out or Path("runs") / directory.resolve().name
    imported = read_directory(directory)
    saved = save_import(imported, directory, run_dir)
    params = imported.model.config.costs().params
    if json:
        emit_json({"path": str(saved), "class": imported.family.architecture, "params": params})
        return
    typer.echo(
        f'{imported.family.architecture} with {params["unique"]:,} parameters ({imported.dtype}) in {run_dir}. Try: slm generate {run_dir} "..."'
    )
