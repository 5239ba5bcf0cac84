"""`slm generate`: continue a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from slm.cli.output import JsonFlag, Plugins, emit_json
from slm.config.errors import RunError
from slm.config.limits import LARGEST_SEED

if TYPE_CHECKING:
    from pathlib import Path

Checkpoint = Annotated[str, typer.Argument(help="A run directory, or a step directory within its checkpoints.")]


def register(app: typer.Typer) -> None:
    app.command("generate")(generate)


@contextmanager
def reading(*checkpoints: str) -> Iterator[None]:
    """Within it, the error of a damaged checkpoint says what a verb that only reads can do: take another one.

    `log.resume`, which the error itself advises, is training's.
    """
    from slm.checkpoint import resolve
    from slm.checkpoint.manifest import instead

    try:
        yield
    except RunError as error:
        text = str(error)
        for path in map(resolve, checkpoints):
            if text.startswith(str(path)) and text.endswith(instead(path)):
                raise RunError(text.removesuffix(instead(path)) + _beside(path)) from None
        raise


def _beside(path: "Path") -> str:
    """Which checkpoints there are beside a damaged one, whether whole or not."""
    from slm.checkpoint.layout import steps

    others = [other for other in steps(path.parent) if other != path]
    if not others:
        return "There is no other checkpoint beside it."
    return (
        f"Beside it there {'is one other' if len(others) == 1 else f'are {len(others)} others'}; `slm checkpoint ls {path.parent.parent} "
        f"--verify` says what is whole. Name one that is, such as {others[-1]}."
    )


def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Argument(help="Text to continue.")] = "",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="0: no limit.")] = 0,
    top_p: Annotated[float, typer.Option()] = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED)] = 0,
    context: Annotated[
        int | None, typer.Option(help="Tokens to read at once; by default those of the rows that it was trained on.")
    ] = None,
    device: Annotated[str, typer.Option()] = "auto",
    plugins: Plugins = None,
    json: JsonFlag = False,
) -> None:
    """Stream a continuation of PROMPT."""
    from slm.checkpoint import restore
    from slm.config.compose import import_plugins
    from slm.data.tokenizer import Tokenizer
    from slm.generate import Sampling
    from slm.generate import generate as decode
    from slm.generate.stream import Utf8Stream
    from slm.train.parallel.world import pick_device

    import_plugins(plugins or [])
    sampling = Sampling(temperature, top_k, top_p, seed)
    with reading(checkpoint):
        restored = restore(checkpoint, device=pick_device(device))
    tokenizer = Tokenizer.from_bytes(restored.tokenizer)
    ids = [tokenizer.eot_id, *tokenizer.encode(prompt)]
    new = []
    stream = Utf8Stream()
    if not json:
        typer.echo(prompt, nl=False)
    window = restored.context if context is None else context
    for token in decode(
        restored.model, ids, max_new_tokens=max_new_tokens, context=window, sampling=sampling, stop=tokenizer.eot_id
    ):
        new.append(token)
        if not json:
            typer.echo(stream.feed(tokenizer.decode_bytes([token], whole=False)), nl=False)
    if json:
        emit_json(
            {
                "checkpoint": str(restored.path),
                "prompt": prompt,
                "text": tokenizer.decode(new, whole=False),
                "tokens": new,
            }
        )
    else:
        typer.echo(stream.end())
