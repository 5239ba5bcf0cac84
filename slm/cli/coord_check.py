"""`slm model coord-check`: does a learning rate carry over to other widths?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slm.cli.output import JsonFlag, Overrides, emit_json, table
from slm.config.limits import LARGEST_SEED

if TYPE_CHECKING:
    from slm.config.compose import Composed
    from slm.run import Run
    from slm.train.coord_check import CoordCheck

MEANING = {
    "flat": "the learning rate carries over",
    "growing": "a rate that suits one width is too high for wider ones",
    "shrinking": "at one rate, wider models learn ever less",
}


def coord_check(
    recipe: Annotated[
        str, typer.Argument(help="A recipe by name or path, or a preset, which takes the rest from quickstart.")
    ],
    overrides: Overrides = None,
    widths: Annotated[str, typer.Option(help="Widths to compare, separated by commas.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 4,
    lr: Annotated[float | None, typer.Option(help="Learning rate; short for train.optim.lr.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED)] = 0,
    out: Annotated[Path | None, typer.Option(help="Draw the changes over the widths into this .svg file.")] = None,
    json: JsonFlag = False,
) -> None:
    """Take a few steps at several widths and say how the activations' change depends on the width."""
    from slm.config.errors import ConfigError
    from slm.train.coord_check import coord_check as check

    composed = _compose(recipe, [*(overrides or []), *([f"train.optim.lr={lr}"] if lr is not None else [])])
    model = composed.config.model
    try:
        chosen = [int(w) for w in widths.split(",")] if widths else [model.dim // 2, model.dim, 2 * model.dim]
    except ValueError:
        raise ConfigError(
            f"--widths {widths}: write whole numbers with commas between them, such as 64,128,256."
        ) from None
    found = check(model, composed.config.train.optim, chosen, steps=steps, seed=seed)
    if out is not None:
        _draw(found, out)
    place = found.deciding
    if json:
        emit_json(
            {
                "recipe": recipe,
                "steps": steps,
                "changes": found.changes,
                "exponents": found.exponents,
                "verdicts": found.verdicts,
                "verdict": found.verdicts[place],
                "decided_by": place,
            }
        )
        return
    for note in composed.notes:
        typer.echo(note)
    places = list(found.exponents)
    rows = [[str(width), *(f"{change[p]:.3g}" for p in places)] for width, change in found.changes.items()]
    rows.append(["exponent", *(f"{found.exponents[p]:+.2f} {found.verdicts[p]}" for p in places)])
    table(["width", *places], rows, right=tuple(range(1, len(places) + 1)))
    typer.echo(f"Standard deviation of what {steps} steps changed; it goes like width^exponent.")
    verdict = found.verdicts[place]
    typer.echo(f"{verdict}: {place} ~ width^{found.exponents[place]:+.2f}; {MEANING[verdict]}.")


def _compose(recipe: str, overrides: list[str]) -> "Composed[Run]":
    """The recipe; or, where there is none of that name, the preset in the quickstart recipe."""
    from slm.config.compose import compose
    from slm.config.paths import group_options, list_recipes
    from slm.run import Run

    if recipe not in list_recipes() and recipe in group_options("model"):
        return compose("quickstart", [f"model={recipe}", *overrides], schema=Run)
    return compose(recipe, overrides, schema=Run)


def _draw(found: "CoordCheck", out: Path) -> None:
    from slm.report.charts import Chart, Line, standalone

    x = [math.log2(width) for width in found.changes]
    lines = [
        Line(place, x, [math.log2(max(change[place], 1e-30)) for change in found.changes.values()], marked=True)
        for place in found.exponents
    ]
    out.write_text(standalone(Chart("log2 of the width", "log2 of the change", lines)))
