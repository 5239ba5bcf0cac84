"""`slm eval`: bits per byte of a checkpoint on held-out documents."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from slm.cli.generate import Checkpoint
from slm.cli.output import JsonFlag, Plugins, emit_json


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    checkpoint: Checkpoint,
    store: Annotated[
        str | None, typer.Option(help="A token store; by default the one that the run was trained on.")
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
    from slm.data.store import Store
    from slm.eval.baselines import compressors
    from slm.eval.bpb import evaluate as measure
    from slm.eval.bpb import store_of
    from slm.train.parallel import pick_device

    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"--precision {precision}: choose fp32 or bf16.")
    import_plugins(plugins or [])
    restored = restore(checkpoint, device=pick_device(device))
    opened = Store.open(store or store_of(restored.config))
    if opened.tokenizer.to_bytes() != restored.tokenizer:
        raise ConfigError(
            f"The store {opened.path} was made with another tokenizer than {restored.path}: its ids mean other text."
        )
    score = measure(restored.model, opened.documents("heldout"), opened.tokenizer.eot_id, precision=precision)
    result: dict[str, Any] = {
        "checkpoint": str(restored.path),
        "bpb": {"heldout": score.bpb},
        "documents": score.docs,
        "bytes": score.bytes,
        "tokens": score.tokens,
        "baselines": compressors(opened.text("heldout")),
        "tasks": {},
        "groups": {},
    }
    if json:
        emit_json(result)
        return
    typer.echo(
        f"{score.bpb:.4f} bits per byte on {score.docs} held-out documents ({score.bytes:,} bytes) of {opened.path}"
    )
    for name, value in result["baselines"].items():
        typer.echo(f"{value:.4f} {name} on the same bytes")
