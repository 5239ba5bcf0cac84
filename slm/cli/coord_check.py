"""`slm model coord-check`: does a learning rate carry over to other widths?"""

from __future__ import annotations

from typing import Annotated

import typer

from slm.cli.output import JsonFlag, emit_json, table


def coord_check(
    recipe: Annotated[str, typer.Argument(help="A recipe, by name or path.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as model/parametrization=mup.")] = None,
    widths: Annotated[str, typer.Option(help="Widths to compare, separated by commas.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 4,
    seed: Annotated[int, typer.Option()] = 0,
    json: JsonFlag = False,
) -> None:
    """Take a few steps at several widths and say how the activations' change depends on the width."""
    from slm.config.compose import compose
    from slm.config.errors import ConfigError
    from slm.run import Run
    from slm.train.coord_check import coord_check as check

    composed = compose(recipe, overrides or [], schema=Run)
    model = composed.config.model
    try:
        chosen = [int(w) for w in widths.split(",")] if widths else [model.dim // 2, model.dim, 2 * model.dim]
    except ValueError:
        raise ConfigError(
            f"--widths {widths}: write whole numbers with commas between them, such as 64,128,256."
        ) from None
    found = check(model, composed.config.train.optim, chosen, steps=steps, seed=seed)
    if json:
        emit_json(
            {
                "recipe": recipe,
                "steps": steps,
                "changes": found.changes,
                "exponents": found.exponents,
                "verdicts": found.verdicts,
            }
        )
        return
    for note in composed.notes:
        typer.echo(note)
    places = list(found.exponents)
    rows = [[str(width), *(f"{change[p]:.3g}" for p in places)] for width, change in found.changes.items()]
    rows.append(["exponent", *(f"{found.exponents[p]:+.2f} {found.verdicts[p]}" for p in places)])
    table(["width", *places], rows, right=tuple(range(1, len(places) + 1)))
    typer.echo(
        f"Standard deviation of what {steps} steps changed; change ~ width^exponent. Flat: the learning rate carries over."
    )
