"""`slm tokenizer`: train a tokenizer on files of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slm.cli.output import JsonFlag, emit_json


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Tokenizers.", no_args_is_help=True, rich_markup_mode=None)
    verbs.command("train")(train)
    app.add_typer(verbs, name="tokenizer")


def train(
    out: Annotated[Path, typer.Option(help="The tokenizer.json to write.")],
    sources: Annotated[
        list[str] | None, typer.Argument(help="Text or jsonl files; none: the standard library's sources.")
    ] = None,
    vocab: Annotated[int, typer.Option(min=257)] = 4096,
    json: JsonFlag = False,
) -> None:
    """Train a byte-level BPE tokenizer."""
    from slm.data.sources import Local, Stdlib
    from slm.data.store import write_durably
    from slm.data.tokenizer import BytePairs

    source = Local(paths=tuple(sources)) if sources else Stdlib()
    trained = BytePairs(vocab=vocab).load(lambda: (d.text for d in source.documents()))
    sample = [d.text for d, _ in zip(source.documents(), range(200), strict=False)]
    tokens = sum(map(len, trained.encode_batch(sample)))
    size = sum(len(t.encode()) for t in sample)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_durably(out, trained.to_bytes())
    if json:
        emit_json(
            {
                "path": str(out),
                "vocab_size": trained.vocab_size,
                "bytes_per_token": size / tokens,
                "sha256": trained.sha256,
            }
        )
    else:
        typer.echo(
            f"{out}: {trained.vocab_size:,} tokens, {size / tokens:.2f} bytes per token on {len(sample)} documents"
        )
