"""`slm data`: make token stores and look into them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from slm.cli.output import JsonFlag, Overrides, Recipe, console, emit_json, table

StorePath = Annotated[Path, typer.Argument(help="A token store.")]


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Token stores.", no_args_is_help=True, rich_markup_mode=None)
    verbs.command("tokenize")(tokenize)
    verbs.command("verify")(verify)
    verbs.command("stats")(stats)
    verbs.command("plan")(plan)
    verbs.command("show")(show)
    app.add_typer(verbs, name="data")


def tokenize(recipe: Recipe, overrides: Overrides = None, json: JsonFlag = False) -> None:
    """Make the token store of a recipe, without training."""
    from slm.config.compose import compose
    from slm.data.prepare import prepare
    from slm.run import Run

    run = compose(recipe, overrides, schema=Run).config
    with console(json).status("tokenising"):
        store = prepare(run.data, run.tokenizer, run.impl.data_dir)
    if json:
        emit_json({"store": str(store.path), **_figures(store)})
    else:
        typer.echo(str(store.path))


def verify(store: StorePath, json: JsonFlag = False) -> None:
    """Check every checksum."""
    from slm.data.store import Store

    opened = Store.open(store)
    opened.verify()
    if json:
        emit_json({"store": str(store), "ok": True})
    else:
        typer.echo(f"{store}: every block, index and metadata file is as written.")


def stats(store: StorePath, json: JsonFlag = False) -> None:
    """Documents, tokens and lengths of each split."""
    from slm.data.store import Store

    figures = _figures(Store.open(store))
    if json:
        emit_json({"store": str(store), **figures})
    else:
        rows = [
            [name, *(f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" for v in s.values())]
            for name, s in figures["splits"].items()
        ]
        table(
            ["split", "documents", "tokens", "bytes", "bytes/token", "median length", "longest"],
            rows,
            right=(1, 2, 3, 4, 5, 6),
        )
        typer.echo(f"dropped: {figures['dropped']}")


def plan(recipe: Recipe, overrides: Overrides = None, json: JsonFlag = False) -> None:
    """Rows, fill and epochs of a recipe's data."""
    _, run, made, rows = _plan(recipe, overrides)
    epoch = made.tokens_per_epoch
    steps = run.train.budget.total_steps(run.model.costs(), run.train.batch_tokens)
    result = {
        "plan": made.hash,
        "rows_per_epoch": made.rows_per_epoch,
        "tokens_per_epoch": epoch,
        "fill": epoch / made.rows_per_epoch / made.seq_len,
        "rows": steps * rows,
        "epochs": steps * rows / made.rows_per_epoch,
    }
    if json:
        emit_json(result)
    else:
        table(["what", "value"], [[k, v] for k, v in result.items()])


def show(
    recipe: Recipe,
    overrides: Overrides = None,
    step: Annotated[int, typer.Option(min=0, help="0-based optimiser step.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the batch to show.")] = 1,
    json: JsonFlag = False,
) -> None:
    """What the model reads at a step: decoded rows with their document boundaries."""
    store, _, made, per_batch = _plan(recipe, overrides)
    shown: list[dict[str, Any]] = []
    for n in range(step * per_batch, step * per_batch + min(rows, per_batch)):
        row = made.row(n)
        real = row.targets >= 0
        pieces = [row.tokens[real & (row.docs == d)] for d in range(int(row.docs[real].max()) + 1)]
        shown.append({"row": n, "pieces": [store.tokenizer.decode(p) for p in pieces]})
    if json:
        emit_json({"step": step, "rows": shown})
        return
    for item in shown:
        for number, text in enumerate(item["pieces"]):
            typer.echo(f"---- row {item['row']}, piece {number} ----\n{text}")


def _plan(recipe: str, overrides: list[str] | None):  # type: ignore[no-untyped-def]
    """(store, run, plan, rows per batch) of a recipe; makes the store if it is missing."""
    from slm.config.compose import compose
    from slm.data.plan import Plan
    from slm.data.prepare import prepare
    from slm.run import Run

    run = compose(recipe, overrides, schema=Run).config
    store = prepare(run.data, run.tokenizer, run.impl.data_dir)
    return store, run, Plan(store, run.data), run.train.batch_tokens // run.data.seq_len


def _figures(store) -> dict:  # type: ignore[no-untyped-def, type-arg]
    import numpy as np

    splits = {}
    for name, split in store.splits.items():
        size = sum(s.entry["bytes"] for s in split.shards)
        lengths = split.lengths if len(split) else np.zeros(1, np.int64)
        splits[name] = {
            "documents": len(split),
            "tokens": split.tokens,
            "bytes": size,
            "bytes_per_token": size / max(1, split.tokens),
            "median_length": int(np.median(lengths)),
            "longest": int(lengths.max()),
        }
    return {"splits": splits, "dropped": store.manifest["dropped"], "tokenizer": store.manifest["tokenizer"]}
