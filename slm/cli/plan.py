"""`slm plan`: everything that is known before a run."""

from __future__ import annotations

import typer

from slm.cli.output import JsonFlag, Overrides, Recipe, emit_json, table


def register(app: typer.Typer) -> None:
    app.command("plan")(plan)


def plan(recipe: Recipe, overrides: Overrides = None, json: JsonFlag = False) -> None:
    """Parameters, tokens, FLOPs, epochs, memory and exportability of a recipe, before it is run."""
    from slm.config.compose import compose
    from slm.planning import plan_run
    from slm.run import Run

    composed = compose(recipe, overrides, schema=Run)
    result = plan_run(composed.config, recipe)
    if json:
        emit_json(result)
        return
    for note in composed.notes:
        typer.echo(note)
    flat = {
        "experiment": result["identity"],
        "parameters": f"{result['params']['unique']:,} ({result['params']['non_embedding']:,} without embeddings)",
        "tokens": f"{result['tokens']:,} ({result['tokens_per_param']:.3g} per parameter, {result['chinchilla']:.2g} x Chinchilla)",
        "steps": f"{result['steps']:,} of {result['batch_tokens']:,} tokens",
        "training FLOPs": f"{result['flops_total']:.3g}",
        "memory per process": f"{result['memory']['per_rank_bytes'] / 2**30:.2f} GiB (activations estimated)",
        **{f"data: {d['source']}": _epochs(d) for d in result["data"]},
        **{f"export: {t}": e["class"] or f"no: {e['reason']}" for t, e in result["export"].items()},
    }
    table(["what", "value"], [[k, v] for k, v in flat.items()])
    for warning in result["warnings"]:
        typer.echo(f"Warning: {warning}")


def _epochs(source: dict) -> str:  # type: ignore[type-arg]
    if source["tokens"] is None:
        return "not tokenised yet: `slm data tokenize` makes the store"
    return f"{source['tokens']:,} tokens, {source['epochs']:.2f} epochs"
