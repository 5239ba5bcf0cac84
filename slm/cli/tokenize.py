"""`slm data tokenize` and `slm data import`: make token stores."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from slm.cli.output import JsonFlag, console, emit_json
from slm.config.limits import LARGEST_SEED

FLAGS = {"settings": "set", "filters": "filter"}
"""Flags that are called otherwise than their variables."""


class Backend(StrEnum):
    """What `slm.data.tokenizer.backend` knows."""

    auto = "auto"
    hf = "hf"
    tiktoken = "tiktoken"
    gigatoken = "gigatoken"
    sentencepiece = "sentencepiece"


Sources = Annotated[
    list[str],
    typer.Argument(
        help="With --out: sources (a path, name:path such as fineweb_edu:DIR, hub:ID). Without: a recipe, and key=value overrides."
    ),
]
Out = Annotated[Path | None, typer.Option(help="The store to make.")]
TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", help="A tokenizer's file, bytes, or one to train: bpe:32768.")
]


def tokenize(
    context: typer.Context,
    sources: Sources,
    out: Out = None,
    tokenizer: TokenizerOption = "bpe:32768",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")] = None,
    backend: Annotated[Backend, typer.Option(help="The library that encodes.")] = Backend.auto,
    engine: Annotated[
        str, typer.Option(help="pool (processes here), datatrove, datatrove-slurm or datatrove-ray.")
    ] = "pool",
    tasks: Annotated[int, typer.Option(min=1, help="Jobs of another engine than pool.")] = 64,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the engine's executor, such as partition=cpu or time=4:00:00."),
    ] = None,
    filters: Annotated[
        list[str] | None, typer.Option("--filter", help="Keep documents for which this holds: 'int_score >= 3'.")
    ] = None,
    dedup: Annotated[str, typer.Option(help="exact, normalized or off.")] = "exact",
    decontaminate: Annotated[
        list[str] | None, typer.Option(help="An evaluation set (a file, or NAME=FILE) whose texts must not occur.")
    ] = None,
    ngram: Annotated[int, typer.Option(help="Words in a row that count as an occurrence.")] = 13,
    quality: Annotated[
        str | None, typer.Option(help="MODEL.bin:LABEL of a fastText model; its score becomes the column 'quality'.")
    ] = None,
    heldout: Annotated[float, typer.Option(help="Share of documents kept for evaluation.")] = 0.01,
    shuffle: Annotated[bool, typer.Option(help="Store documents in a random order.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of that order.", min=0, max=LARGEST_SEED)] = 0,
    skip_broken: Annotated[bool, typer.Option(help="Leave out and count records that can't be read.")] = False,
    json: JsonFlag = False,
) -> None:
    """Make a token store from sources (--out), or those of a recipe. The same command goes on after an interruption."""
    from slm.data.ingest.progress import Shown
    from slm.data.inspect import figures

    screen = console(json)
    with Shown(screen) as progress:
        if out is None:
            _refuse_settings(context)
            stores = _of_recipe(sources, progress)
        else:
            from slm.config.compose import validate
            from slm.data.ingest.build import build
            from slm.data.ingest.choose import engine_of, evaluation_sets, quality_of, settings_of, tokenizer_of
            from slm.data.ingest.config import Curation
            from slm.data.sources import source_of

            chosen = [source_of(text, say=lambda line: screen.print(line, markup=False)) for text in sources]
            curation = validate(
                Curation,
                {
                    "heldout": heldout,
                    "filters": tuple(filters or ()),
                    "dedup": dedup,
                    "decontaminate": evaluation_sets(decontaminate or (), ngram),
                    "quality": quality_of(quality),
                    "shuffle": shuffle,
                    "shuffle_seed": seed,
                },
            )
            if skip_broken:
                chosen = [s.with_(on_error="skip") if "on_error" in type(s).model_fields else s for s in chosen]
            built = build(
                out,
                tuple(chosen),
                tokenizer_of(tokenizer),
                curation,
                workers=workers,
                backend=backend.value,
                engine=engine_of(engine, tasks, workers, settings_of(settings or ())),
                progress=progress,
            )
            stores = {str(out): built}
    if json:
        made = [{"store": str(store.path), **figures(store)} for store in stores.values()]
        emit_json(made[0] if len(made) == 1 else {"stores": made})
        return
    for store in stores.values():
        _say_account(store)


def import_(
    files: Annotated[
        list[str], typer.Argument(help="Token files of datatrove, OLMo, Megatron or llm.c, or directories of them.")
    ],
    out: Annotated[Path, typer.Option(help="The store to make; it links to the files, nothing is copied.")],
    tokenizer: Annotated[str, typer.Option(help="The file of the tokenizer that they were made with.")],
    format: Annotated[
        str, typer.Option(help="datatrove, olmo, megatron, llmc, columns; auto: by their contents.")
    ] = "auto",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the format, such as eos=0 or unmarked=true.")
    ] = None,
    heldout: Annotated[float, typer.Option(min=0, max=0.999, help="Share of documents kept for evaluation.")] = 0.0,
    json: JsonFlag = False,
) -> None:
    """Make a token store over token files that exist, without copying a token."""
    from slm.data.ingest.choose import settings_of, tokenizer_of
    from slm.data.ingest.imported import import_tokens
    from slm.data.inspect import figures

    paths = [Path(file).expanduser() for file in files]
    store = import_tokens(
        out, paths, tokenizer_of(tokenizer), name=format, settings=settings_of(settings or ()), heldout=heldout
    )
    if json:
        emit_json({"store": str(store.path), **figures(store)})
    else:
        _say_account(store)


def _refuse_settings(context: typer.Context) -> None:
    """Raise `ConfigError` if settings of a store were given beside a recipe, which has its own."""
    from slm.config.errors import ConfigError

    by_hand = [
        name for name in context.params
        if name not in ("sources", "out", "json") and getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE"
    ]  # fmt: skip
    if by_hand:
        flags = ", ".join(f"--{FLAGS.get(name, name).replace('_', '-')}" for name in by_hand)
        raise ConfigError(
            f"{flags}: a recipe says itself how its sources are tokenised. Write it as overrides, such as data.filters=['int_score >= 3'], "
            f"data.heldout=0.01, tokenizer.vocab=32768 or impl.workers=4; or make a single store with --out."
        )


def _of_recipe(arguments: list[str], progress: Any) -> dict[str, Any]:
    """The stores of a recipe, with those that its later stages read."""
    from slm.config.compose import compose
    from slm.data.prepare import prepare
    from slm.run import Run
    from slm.train.stages import stage_runs

    stores = dict[str, Any]()
    for run in stage_runs(compose(arguments[0], arguments[1:], schema=Run).config):
        corpus = prepare(
            run.data,
            run.tokenizer,
            run.impl.data_dir,
            workers=run.impl.workers,
            backend=run.impl.tokenizer_backend,
            progress=progress,
        )
        stores |= {str(store.path): store for store in corpus.stores.values()}
    return stores


def _say_account(store: Any) -> None:
    """Where every record of the input went."""
    account = store.manifest["accounting"]
    typer.echo(str(store.path))
    for name, split in store.splits.items():
        typer.echo(f"  {name}: {len(split):,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes")
    dropped = ", ".join(f"{n:,} {rule}" for rule, n in account["dropped"].items()) or "none"
    typer.echo(f"  {account['read']:,} records read, {account['kept']:,} kept; dropped: {dropped}")
