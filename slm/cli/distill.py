"""`slm distill`: what a teacher says of a run's text, once and for all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slm.cli.output import JsonFlag, Overrides, Recipe, console, emit_json


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Knowledge distillation.", no_args_is_help=True, rich_markup_mode=None)
    verbs.callback()(lambda: None)  # one verb alone would take the group's place
    verbs.command("cache")(cache)
    app.add_typer(verbs, name="distill")


def cache(
    recipe: Recipe,
    overrides: Overrides = None,
    teacher: Annotated[
        str | None, typer.Option(help="A run, checkpoint or Hugging Face directory; by default train.distill.teacher.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The directory to write; by default train.distill.cache, or teacher-cache.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Tokens told apart at each place; by default train.distill.top_k, or 64.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="By default train.distill.temperature, or 1.", min=1e-3)
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of the plan; by default all that the run reads.")
    ] = None,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows that the teacher reads at once.")] = 8,
    json: JsonFlag = False,
) -> None:
    """Let a teacher read the text that RECIPE trains on, and keep its most probable tokens for train.distill.cache."""
    from slm.checkpoint.fingerprint import weights_hash
    from slm.config.compose import compose
    from slm.config.errors import ConfigError
    from slm.data.prepare import prepare
    from slm.run import Run
    from slm.train.distill.fill import fill, header_of, plan_for
    from slm.train.distill.loss import check_top_k
    from slm.train.distill.teacher import open_teacher
    from slm.train.parallel.world import pick_device

    run = compose(recipe, overrides or [], schema=Run).config
    settings = run.train.distill
    path = teacher or (settings.teacher if settings else None)
    if path is None:
        raise ConfigError(f"{recipe} names no teacher. Give one with --teacher.")
    out = out or Path((settings.cache if settings else None) or "teacher-cache")
    top_k = top_k or (settings.top_k if settings else None) or 64
    check_top_k(top_k, run.model.vocab_)
    temperature = temperature or (settings.temperature if settings else 1.0)
    named, screen = weights_hash(path), console(json)
    corpus = prepare(run.data, run.tokenizer, run.impl.data_dir, workers=run.impl.workers)
    plan, needed = plan_for(run, corpus)
    header = header_of(
        run, corpus, plan, rows=rows or needed, teacher=named, top_k=top_k, temperature=temperature
    )  # fmt: skip
    opened = open_teacher(run, corpus, path, named, pick_device(run.impl.device))
    written = fill(
        out, header, plan, opened, precision=run.train.precision, batch_rows=batch_rows,
        say=lambda done, total: screen.print(f"{done:,} of {total:,} rows"),
    )  # fmt: skip
    size = sum(file.stat().st_size for file in (out / "shards").iterdir())
    if json:
        emit_json({"path": str(out), "written_shards": written, "bytes": size, **header})
        return
    typer.echo(
        f"{out}: {header['rows']:,} rows of plan {header['plan']}, {size:,} bytes. Train with train.distill.cache={out} "
        f"train.distill.top_k={top_k} train.distill.temperature={temperature:g}."
    )
