"""`slm eval`: bits per byte of a checkpoint on held-out documents."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from slm.cli.generate import Checkpoint, reading
from slm.cli.output import JsonFlag, Plugins, emit_json


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    checkpoint: Checkpoint,
    store: Annotated[
        str | None, typer.Option(help="A token store; by default the one that the run was trained on.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens per window; by default those of the rows that it was trained on.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16")] = "fp32",
    device: Annotated[str, typer.Option()] = "auto",
    plugins: Plugins = None,
    json: JsonFlag = False,
) -> None:
    """Bits per byte on every held-out document, beside gzip and xz on the same bytes."""
    from slm.checkpoint import restore
    from slm.config.compose import import_plugins
    from slm.config.errors import ConfigError
    from slm.data.corpus import Corpus
    from slm.data.store import Store
    from slm.eval.baselines import compressors
    from slm.eval.bpb import corpus_of, sum_of
    from slm.eval.bpb import evaluate as measure
    from slm.train.parallel.world import pick_device

    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"--precision {precision}: choose fp32 or bf16.")
    import_plugins(plugins or [])
    with reading(checkpoint):
        restored = restore(checkpoint, device=pick_device(device))
    corpus = Corpus({"store": Store.open(store)}) if store else corpus_of(restored.config)
    where = ", ".join(str(opened.path) for opened in corpus.stores.values())
    if corpus.tokenizer_bytes != restored.tokenizer:
        raise ConfigError(
            f"The store {where} was made with another tokenizer than {restored.path}: its ids mean other text."
        )
    eot, scores, window = corpus.tokenizer.eot_id, {}, restored.context if context is None else context
    for name, opened in corpus.stores.items():
        scores[name] = measure(restored.model, opened.documents("heldout"), eot, context=window, precision=precision)
    score = sum_of(scores.values())
    result: dict[str, Any] = {
        "checkpoint": str(restored.path),
        "bpb": {"heldout": score.bpb} | ({n: s.bpb for n, s in scores.items()} if len(scores) > 1 else {}),
        "documents": score.docs,
        "bytes": score.bytes,
        "tokens": score.tokens,
        "context": window,
        "baselines": compressors(corpus.text("heldout")),
        "tasks": {},
        "groups": {},
    }
    if json:
        emit_json(result)
        return
    typer.echo(f"{score.bpb:.4f} bits per byte on {score.docs} held-out documents ({score.bytes:,} bytes) of {where}")
    for name, value in result["baselines"].items():
        typer.echo(f"{value:.4f} {name} on the same bytes")
