"""`slm model`: presets, and what one of them costs."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from slm.cli.coord_check import coord_check
from slm.cli.importing import import_model
from slm.cli.output import JsonFlag, emit_json, table
from slm.cli.prune import prune_model


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Model presets and their cost.", no_args_is_help=True, rich_markup_mode=None)
    verbs.command("list")(list_models)
    verbs.command("show")(show)
    verbs.command("import")(import_model)
    verbs.command("prune")(prune_model)
    verbs.command("coord-check")(coord_check)
    app.add_typer(verbs, name="model")


SLOTS = ("attention", "ffn", "norm", "position", "residual", "embedding", "layout")
"""What is shown of a preset's parts."""


def list_models(json: JsonFlag = False) -> None:
    """List all presets."""
    from slm.model.presets import MISSING, list_presets, load_preset

    models: list[dict[str, Any]] = []
    for name in list_presets():
        model = load_preset(name)
        params = model.costs().params
        shape = {
            "name": name,
            "params": params["unique"],
            "params_total": params["total"],
            "dim": model.dim,
            "layers": model.layers,
        }
        models.append(shape | {s: getattr(model, s).part_name for s in SLOTS} | {"source": model.source})
    if json:
        missing = [{"name": name, "reason": reason} for name, reason in MISSING.items()]
        emit_json({"models": models, "missing": missing})
        return
    rows = []
    for m in models:  # few columns, so that a preset fits a line of 120
        named = ", ".join(m[slot] for slot in SLOTS if m[slot] != "uniform")
        rows.append([m["name"], f"{m['params'] / 1e6:,.0f} M", m["layers"], m["dim"], named, citation(m["source"])])
    table(["name", "params", "layers", "dim", "parts", "source"], rows, right=(1, 2, 3))
    typer.echo(f"{len(models)} presets. Params: those that are stored. Parts: {', '.join(SLOTS)} (unless uniform).")
    for name, reason in MISSING.items():
        typer.echo(f"No preset for {name}: {reason}.")


def citation(source: str) -> str:
    """The shortest thing to look a source up by: its arXiv number, or who and when."""
    found = re.search(r"arXiv \d{4}\.\d{4,5}", source)
    return found[0] if found else re.split(r" \(|[.;,] (?=[a-z])", source)[0]


def show(
    name: Annotated[str, typer.Argument(help="A preset.")],
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of context for FLOPs and cache.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show one preset's parts, parameters, FLOPs and cache."""
    from slm.model.presets import load_preset

    model = load_preset(name)
    cost = model.costs(context)
    parts: dict[str, Any] = {
        kind: {"params": c.params, "flops_per_token": c.causal_flops(cost.context)} for kind, c in cost.parts.items()
    }
    result = {
        "name": name,
        "params": cost.params,
        "flops_per_token": cost.flops_per_token,
        "kv_cache_bytes": cost.kv_cache_bytes(),
        "context": cost.context,
        "parts": parts,
        "config": model.model_dump(mode="json"),
    }
    if json:
        emit_json(result)
        return
    typer.echo(
        f"{name}: {cost.params['unique']:,} parameters, {model.layers} layers of width {model.dim}. {model.source}"
    )
    rows = [[k, f"{p['params']:,}", f"{p['flops_per_token'] / 1e6:,.2f} M"] for k, p in parts.items()]
    table(["part", "parameters", f"forward FLOPs/token at {cost.context} tokens"], rows, right=(1, 2))
    typer.echo(
        f"training {cost.flops_per_token['train'] / 1e6:,.2f} MFLOPs per token; cache {cost.kv_cache_bytes():,} bytes at {cost.context} tokens"
    )
