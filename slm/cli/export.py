"""`slm export`: a checkpoint as a directory that other software reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slm.cli.generate import Checkpoint, reading
from slm.cli.output import JsonFlag, Plugins, emit_json


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    checkpoint: Checkpoint,
    to: Annotated[str, typer.Option("--to", help="Targets, separated by commas: hf.")] = "hf",
    out: Annotated[
        Path | None, typer.Option(help="Where to write; by default beside the checkpoints, named after the target.")
    ] = None,
    plugins: Plugins = None,
    json: JsonFlag = False,
) -> None:
    """Export and verify: the written model is loaded by its target and must give the same logits."""
    from slm.checkpoint import restore
    from slm.config.compose import import_plugins
    from slm.config.errors import ConfigError, suggest
    from slm.export import EXPORTERS

    targets = [name.strip() for name in to.split(",")]
    for target in targets:
        if target not in EXPORTERS:
            raise ConfigError(f"--to {target}: no such target. {suggest(target, EXPORTERS)}")
    if out is not None and len(targets) > 1:
        raise ConfigError(
            f"--out {out} is one directory, but --to names {len(targets)} targets. Export them one by one."
        )
    import_plugins(plugins or [])
    with reading(checkpoint):
        restored = restore(checkpoint)
    home = restored.path.parent.parent if restored.path.parent.name == "checkpoints" else restored.path
    outputs = [EXPORTERS[t](restored, out or home / t) for t in targets]
    if json:
        emit_json({"outputs": [o.to_json() for o in outputs]})
        return
    for o in outputs:
        typer.echo(
            f"{o.path}: {o.architecture}, verified in transformers (fp32): max |logit difference| {o.max_abs_diff:.2e}, "
            f"KL {o.kl:.1e} nats, top-1 agreement {o.top1_agreement:.2%}"
        )
