"""`slm model prune`: a smaller model out of a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slm.cli.output import JsonFlag, Plugins, emit_json

if TYPE_CHECKING:
    from slm.checkpoint import Restored
    from slm.model.prune.importance import Rows


def prune_model(
    checkpoint: Annotated[str, typer.Argument(help="A run directory, or a step directory within its checkpoints.")],
    out: Annotated[Path, typer.Option(help="The run directory to make.")],
    layers: Annotated[int | None, typer.Option(min=1, help="Layers to keep.")] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="Width of the stream.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Query heads; they keep their width.")] = None,
    kv_heads: Annotated[int | None, typer.Option("--kv-heads", min=1, help="Key/value heads.")] = None,
    ffn_hidden: Annotated[int | None, typer.Option("--ffn-hidden", min=1, help="Width of the feed-forwards.")] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Text to measure on: a recipe or a token store; by default what it was trained on."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of text to measure on.")] = 256,
    device: Annotated[str, typer.Option()] = "auto",
    plugins: Plugins = None,
    json: JsonFlag = False,
) -> None:
    """Cut a trained model narrower or shallower, by what its activations say; train on with train.init_from."""
    from slm.checkpoint import restore
    from slm.config.compose import import_plugins
    from slm.config.errors import ConfigError
    from slm.model.prune import Shape, smaller
    from slm.train.parallel.world import pick_device
    from slm.train.prune import prune, refuse_existing, save_pruned

    shape = Shape(layers, dim, heads, kv_heads, ffn_hidden)
    if shape == Shape():
        raise ConfigError("Nothing to prune: give one of --layers, --dim, --heads, --kv-heads, --ffn-hidden.")
    refuse_existing(out)
    import_plugins(plugins or [])
    restored = restore(checkpoint, device=pick_device(device))
    smaller(restored.model.config, shape)
    pruned = prune(restored.model, shape, _rows(restored, calibrate, rows))
    saved = save_pruned(pruned, restored, shape, out)
    before, after = (m.config.costs().params for m in (restored.model, pruned.model))
    if json:
        emit_json(
            {
                "path": str(saved),
                "params": after,
                "parent_params": before,
                "kept_layers": pruned.blocks,
                "influence": pruned.influence,
            }
        )
        return
    gone = sorted(set(range(len(pruned.influence))) - set(pruned.blocks))
    typer.echo(f"{out}: {after['unique']:,} parameters of {before['unique']:,}.")
    if gone:
        typer.echo(
            f"Layers taken out: {', '.join(f'{i} (influence {pruned.influence[i]:.3f})' for i in gone)}, counted from 0."
        )
    typer.echo(
        f"Train it on with the model section of {saved / 'config.yaml'} and train.init_from={out}; its parent makes a good "
        f"train.distill.teacher."
    )


def _rows(restored: "Restored", calibrate: str | None, rows: int) -> "list[Rows]":
    """Text from a recipe, a store, or the checkpoint's own."""
    from slm.config.compose import compose
    from slm.data.prepare import prepare
    from slm.run import Run
    from slm.train.prune import calibration_corpus, calibration_rows, check_tokenizer

    if calibrate is None or (Path(calibrate) / "manifest.json").is_file() or "://" in calibrate:
        seq_len = restored.config["data"]["seq_len"] if calibrate is None and "data" in restored.config else None
        return calibration_rows(restored, calibration_corpus(restored, calibrate), rows, seq_len=seq_len)
    run = compose(calibrate, [], schema=Run).config
    corpus = prepare(run.data, run.tokenizer, run.impl.data_dir, workers=run.impl.workers)
    check_tokenizer(restored, corpus)
    return calibration_rows(restored, corpus, rows, seq_len=run.data.seq_len)
