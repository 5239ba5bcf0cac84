"""`slm data`: make token stores and look into them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from slm.cli.output import JsonFlag, Overrides, Recipe, emit_json, table
from slm.cli.tokenize import import_, tokenize

StorePath = Annotated[str, typer.Argument(help="A token store: a directory or a URL.")]


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Token stores.", no_args_is_help=True, rich_markup_mode=None)
    verbs.command("tokenize")(tokenize)
    verbs.command("import")(import_)
    for verb in (verify, stats, plan, show, where, diff):
        verbs.command(verb.__name__)(verb)
    app.add_typer(verbs, name="data")


def verify(store: StorePath, json: JsonFlag = False) -> None:
    """Check every checksum."""
    from slm.data.store import Store

    opened = Store.open(store)
    opened.verify()
    if json:
        emit_json({"store": str(store), "ok": True})
    else:
        typer.echo(f"{store}: every block, index and metadata file is as written.")


def stats(
    store: StorePath,
    plot: Annotated[Path | None, typer.Option(help="Draw the lengths into this file (.svg, .png, .pdf).")] = None,
    json: JsonFlag = False,
) -> None:
    """Documents, tokens and lengths of each split, and where every record of the input went."""
    from slm.data.inspect import figures, plot_lengths
    from slm.data.store import Store

    result = {"store": str(store), **figures(Store.open(store))}
    if plot is not None:
        plot_lengths(result, plot)
    if json:
        emit_json(result)
        return
    columns = ("documents", "tokens", "bytes", "bytes_per_token", "mean_length", "median_length", "longest", "shards")
    rows = [[name, *(_number(split[c]) for c in columns)] for name, split in result["splits"].items()]
    table(["split", *(c.replace("_", " ") for c in columns)], rows, right=tuple(range(1, 9)))
    for name, split in result["splits"].items():
        most = max((b["tokens"] for b in split["lengths"]), default=1)
        bars = [
            [
                f"{b['from']:,} to {b['below'] - 1:,}",
                f"{b['documents']:,}",
                f"{b['tokens']:,}",
                "█" * round(30 * b["tokens"] / most),
            ]
            for b in split["lengths"]
        ]
        table([f"{name}: document length", "documents", "tokens", "share of tokens"], bars, right=(0, 1, 2))
    account = result["accounting"]
    table(["records", "number"], [["read", f"{account['read']:,}"], ["kept", f"{account['kept']:,}"], *([f"dropped: {r}", f"{n:,}"] for r, n in account["dropped"].items())], right=(1,))  # fmt: skip


def plan(recipe: Recipe, overrides: Overrides = None, json: JsonFlag = False) -> None:
    """Rows, fill and epochs of a recipe's data, stage by stage."""
    from slm.data.plan.table import summary

    opened = _open(recipe, overrides)
    made = opened.plan
    result = {
        **summary(made),
        "rows_per_epoch": made.rows_per_epoch,
        "tokens_per_epoch": made.tokens_per_epoch,
        "fill": made.tokens_per_epoch / made.rows_per_epoch / made.seq_len,
        "rows": opened.course.total_rows,
        "epochs": opened.course.total_rows / made.rows_per_epoch,
    }
    if json:
        emit_json(result)
        return
    table(
        ["what", "value"], [[k, _number(v)] for k, v in result.items() if not isinstance(v, (list, dict))], right=(1,)
    )
    sources = [{"source": name, **figures} for name, figures in result["sources"].items()]
    for rows in (sources, result["stages"], result["exhausted"]):
        if rows:
            table([c.replace("_", " ") for c in rows[0]], [[_number(v) for v in row.values()] for row in rows])


def show(
    recipe: Recipe,
    overrides: Overrides = None,
    step: Annotated[int, typer.Option(min=0, help="0-based optimiser step.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the batch to show.")] = 1,
    width: Annotated[
        int, typer.Option(min=20, help="Characters of each end of a piece; the middle is left out.")
    ] = 300,
    json: JsonFlag = False,
) -> None:
    """What the model reads at a step: decoded rows with their document boundaries."""
    from slm.data.inspect import shown_rows

    opened = _open(recipe, overrides)
    batches = opened.course.batches
    first = batches.rows_before(step)
    found = shown_rows(opened.corpus, opened.plan, range(first, first + min(rows, batches.rows_of(step))))
    if json:
        emit_json({"step": step, "rows": found})
        return
    for row in found:
        typer.echo(
            f"━━ row {row['row']:,} (step {step}) ━━ {row['source']}, epoch {row['epoch']} ━━ {row['padding']} tokens of padding"
        )
        for piece in row["pieces"]:
            ends = (
                "┌ " if piece["starts"] else "┊ "
            ) + f"{piece['id']}, tokens {piece['start']:,} to {piece['start'] + piece['length']:,}"
            typer.echo(ends)
            for line in _shortened(piece["text"], width).splitlines():
                typer.echo(f"│ {line}")
            typer.echo("└ end of the document" if piece["ends"] else "┊ goes on in another row")


def where(
    recipe: Recipe,
    overrides: Overrides = None,
    doc: Annotated[str, typer.Option(help="A document's id.")] = ...,  # type: ignore[assignment]
    json: JsonFlag = False,
) -> None:
    """At which steps the run reads a document."""
    from slm.data.inspect import occurrences

    opened = _open(recipe, overrides)
    course = opened.course
    found = occurrences(opened.corpus, opened.plan, doc, rows=course.total_rows, batch_rows=course.rows(course.total))
    for place in [place for entry in found for place in entry["occurrences"]]:
        place["step"] = course.batches.step_of(place["row"])
    if json:
        emit_json({"doc": doc, "found": found})
        return
    for entry in found:
        typer.echo(f"{doc} is document {entry['number']:,} of {entry['source']} ({entry['split']})")
        if entry["split"] == "heldout":
            typer.echo("It is held out: the run never trains on it.")
        table(["step", "row", "epoch", "tokens"], [[o["step"], o["row"], o["epoch"], f"{o['start']:,} to {o['start'] + o['length']:,}"] for o in entry["occurrences"]])  # fmt: skip


def diff(
    first: Annotated[str, typer.Argument(help="A store, or a recipe.")],
    second: Annotated[str, typer.Argument(help="Another store, or recipe.")],
    json: JsonFlag = False,
) -> None:
    """What differs between two stores, or between the plans of two recipes."""
    from slm.data.inspect import compare_plans, compare_stores, is_store
    from slm.data.store import Store

    if is_store(first) and is_store(second):
        result = compare_stores(Store.open(first), Store.open(second))
    else:
        result = compare_plans(_open(first, None).plan, _open(second, None).plan)
    if json:
        emit_json({"first": first, "second": second, **result})
        return
    for line in result.pop("settings"):
        typer.echo(line)
    for key, value in result.items():
        if isinstance(value, dict):
            for name, entry in value.items():
                typer.echo(f"{name}: " + "; ".join(f"{k} {_number(v)}" for k, v in entry.items()))
        else:
            typer.echo(f"{key.replace('_', ' ')}: {_number(value)}")


class _Open:
    """The data of a recipe, opened (and made, if it is missing)."""

    def __init__(self, recipe: str, overrides: list[str] | None) -> None:
        from slm.config.compose import compose
        from slm.data.plan import Horizon
        from slm.data.plan.of_corpus import plan_of
        from slm.data.prepare import prepare
        from slm.run import Run
        from slm.train.course import Course

        run = compose(recipe, overrides, schema=Run).config
        self.corpus = prepare(run.data, run.tokenizer, run.impl.data_dir, workers=run.impl.workers)
        self.course = Course.of(run, run.costs())
        full = run.train.batch_tokens // run.data.seq_len
        self.plan = plan_of(self.corpus, run.data, horizon=Horizon(self.course.total_rows, full, self.course.params))


def _open(recipe: str, overrides: list[str] | None) -> _Open:
    return _Open(recipe, overrides)


def _number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, (tuple, list)):
        return " to ".join(map(_number, dict.fromkeys(value)))
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _shortened(text: str, width: int) -> str:
    return (
        text
        if len(text) <= 2 * width
        else f"{text[:width]}\n[... {len(text) - 2 * width:,} characters ...]\n{text[-width:]}"
    )
