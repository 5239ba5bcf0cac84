"""`slm checkpoint`: list, verify, merge, average and pin checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slm.cli.generate import reading
from slm.cli.output import JsonFlag, emit_json, table

Where = Annotated[str, typer.Argument(help="A step directory, or a run for its newest checkpoint.")]
Out = Annotated[Path, typer.Option(help="The directory to write, which must not be there yet.")]


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Checkpoints of a run.", no_args_is_help=True, rich_markup_mode=None)
    for verb in (ls, verify, merge, average, pin, unpin):
        verbs.command(verb.__name__)(verb)
    app.add_typer(verbs, name="checkpoint")


def ls(
    run: Annotated[str, typer.Argument(help="A run directory, or a name under runs/.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte, and say which are whole.")] = False,
    json: JsonFlag = False,
) -> None:
    """List a run's checkpoints."""
    from slm.checkpoint import listing, run_dir_of

    run_dir = run_dir_of(run)
    found = listing(run_dir, verify)
    if json:
        rows = [
            {
                "name": c.path.name, "path": str(c.path), "step": c.step, "tokens": c.tokens, "bytes": c.bytes,
                "heldout_bpb": c.heldout_bpb, "pinned": c.pinned, "whole": c.whole, "fault": c.fault,
            }
            for c in found
        ]  # fmt: skip
        emit_json({"run": str(run_dir), "checkpoints": rows})
        return
    table(
        ["checkpoint", "step", "tokens", "size", "held-out bpb", "pinned", *(["whole"] if verify else [])],
        [
            [
                c.path.name,
                f"{c.step:,}",
                "" if c.tokens is None else f"{c.tokens:,}",
                _size(c.bytes),
                "" if c.heldout_bpb is None else f"{c.heldout_bpb:.4f}",
                c.pinned or "",
                *(["yes" if c.whole else "NO"] if verify else []),
            ]
            for c in found
        ],
        right=(1, 2, 3, 4),
    )
    for c in found:
        if c.fault:
            typer.echo(c.fault)


def verify(checkpoint: Where, json: JsonFlag = False) -> None:
    """Check every byte of a checkpoint."""
    from slm.checkpoint import resolve
    from slm.checkpoint import verify as verify_all

    path = resolve(checkpoint)
    with reading(checkpoint):
        verify_all(path)
    if json:
        emit_json({"checkpoint": str(path), "whole": True})
    else:
        typer.echo(f"{path}: every byte is as written.")


def merge(checkpoint: Where, out: Out, json: JsonFlag = False) -> None:
    """Write a checkpoint that many processes saved as one file per group of tensors."""
    from slm.checkpoint import resolve
    from slm.checkpoint.derive import merge as merged

    path = resolve(checkpoint)
    with reading(checkpoint):
        merged(path, out)
    _written("merged", [path], out, json)


def average(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Step directories, oldest first; or one run for all it has.")
    ],
    out: Out,
    shares: Annotated[
        str | None, typer.Option(help="How much each counts, such as 1,2,3; by default all alike.")
    ] = None,
    decay_shape: Annotated[
        str | None,
        typer.Option(help="Shares that imitate a decay of the rate over their span: linear, 1-sqrt or cosine."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Average the weights of some checkpoints. The result has no optimiser state: it is for eval, generate and export."""
    from slm.checkpoint.derive import expand, write_average
    from slm.config.errors import ConfigError, RunError
    from slm.train.averaging import average_weights, shares_of_decay

    if shares is not None and decay_shape is not None:
        raise ConfigError("--shares and --decay-shape both say how much each checkpoint counts; give one of them.")
    paths = expand(checkpoints)
    if not paths:
        raise RunError(
            f"The run {checkpoints[0]} has no checkpoints yet, so there is nothing to average. Train it first, or name another."
        )
    counts = _numbers(shares) if shares is not None else None
    if decay_shape is not None:
        counts = shares_of_decay(decay_shape, len(paths))
    with reading(*map(str, paths)):
        write_average(paths, out, average_weights, counts)
    _written("averaged", paths, out, json)


def pin(
    checkpoint: Where,
    why: Annotated[str, typer.Option(help="A note for whoever wants to remove it.")] = "pinned by hand",
    json: JsonFlag = False,
) -> None:
    """Have a checkpoint stay, whatever log.keep says."""
    from slm.checkpoint import pin as pin_it
    from slm.checkpoint import resolve

    path = resolve(checkpoint)
    pin_it(path, why)
    if json:
        emit_json({"checkpoint": str(path), "pinned": why})
    else:
        typer.echo(f"{path} stays.")


def unpin(checkpoint: Where, json: JsonFlag = False) -> None:
    """Leave a checkpoint to log.keep again."""
    from slm.checkpoint import resolve
    from slm.checkpoint import unpin as unpin_it

    path = resolve(checkpoint)
    was = unpin_it(path)
    if json:
        emit_json({"checkpoint": str(path), "pinned": None, "was_pinned": was})
    else:
        typer.echo(f"{path} is no longer pinned." if was else f"{path} wasn't pinned.")


def _written(how: str, paths: list[Path], out: Path, json: bool) -> None:
    if json:
        emit_json({how: [str(p) for p in paths], "checkpoint": str(out)})
    else:
        typer.echo(f"{out}: {how} from {', '.join(str(p) for p in paths)}.")


def _numbers(text: str) -> list[float]:
    from slm.config.errors import ConfigError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--shares={text}: give numbers with commas between them, such as 1,2,3.") from None


def _size(count: int) -> str:
    """Bytes for people."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g} {units[power]}"
