"""`slm plan`: everything that is known before a run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from slm.cli.output import JsonFlag, Overrides, Recipe, emit_json, table


def register(app: typer.Typer) -> None:
    app.command("plan")(plan)


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    device: Annotated[str | None, typer.Option(help="Plan for this GPU, such as H100, instead of the device here.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="How many processes will train; one by default.")] = None,
    json: JsonFlag = False,
) -> None:  # fmt: skip
    """Parameters, tokens, FLOPs, epochs, memory and exportability of a recipe, before it is run."""
    from slm.config.compose import compose
    from slm.planning import plan_run
    from slm.run import Run

    composed = compose(recipe, overrides, schema=Run)
    result = plan_run(composed.config, recipe, device=device, processes=processes)
    if json:
        emit_json(result)
        return
    for note in composed.notes:
        typer.echo(note)
    table(["what", "value"], [[k, v] for k, v in _summary(result).items()])
    table(["memory of one process", "GiB"], _memory(result), right=(1,))
    for warning in result["warnings"]:
        typer.echo(f"Warning: {warning}")


def _summary(plan: dict[str, Any]) -> dict[str, str]:
    share = f" on {plan['processes']} processes" if plan["processes"] > 1 else ""
    return {
        "experiment": plan["identity"],
        "parameters": f"{plan['params']['unique']:,} ({plan['params']['non_embedding']:,} without embeddings)",
        "tokens": f"{plan['tokens']:,} ({plan['tokens_per_param']:.4g} per parameter, {plan['chinchilla']:.3g} x Chinchilla)",
        "steps": f"{plan['steps']:,} of {plan['batch_tokens']:,} tokens{share}",
        "training FLOPs": f"{plan['flops_total']:.3g}",
        **({"time": _time(plan)} if plan["device"] else {}),
        **{f"data: {d['source']}": _epochs(d) for d in plan["data"]},
        **{f"export: {t}": e["class"] or f"no: {e['reason']}" for t, e in plan["export"].items()},
    }


def _time(plan: dict[str, Any]) -> str:
    device, processes = plan["device"], plan["processes"]
    return f"{device['hours']:,.1f} hours on {processes} x {device['name']} at {device['mfu']:.0%} of the peak"


def _memory(plan: dict[str, Any]) -> list[list[str]]:
    memory, device = plan["memory"], plan["device"]
    temporary = "activations" if memory["peak"] == "backward" else "temporaries of the optimiser's step"
    rows = [
        ["weights", memory["weights"]],
        ["optimiser state", memory["optimizer"]],
        *([["the teacher", memory["teacher"]]] if memory["teacher"] else []),
        ["gradients" if memory["gradients"] else "gradients (none yet when most is held)", memory["gradients"]],
        *([["weights and gradients on their way between processes", memory["exchange"]]] if memory["exchange"] else []),
        [f"{temporary} (micro-batch of {plan['micro_batch']} rows)", memory["activations"]],
        *(
            [["the copy that checkpoints are written from", memory["checkpoint_copy"]]]
            if memory["checkpoint_copy"]
            else []
        ),
        ["allowance for the framework", memory["framework"]],
        ["all", memory["per_rank_bytes"]],
        *(
            [["in the host's memory: the copy that checkpoints are written from", memory["host_bytes"]]]
            if memory["host_bytes"]
            else []
        ),
    ]
    shown = [[name, f"{size / 2**30:.2f}"] for name, size in rows]
    if device:
        verdict = "fits" if device["fits"] else "DOESN'T FIT"
        shown.append([f"{device['name']}: {verdict}", f"{device['memory_bytes'] / 2**30:.2f}"])
    return shown


def _epochs(source: dict[str, Any]) -> str:
    if source["tokens"] is not None:
        return f"{source['tokens']:,} tokens, {source['epochs']:.2f} epochs"
    wanted, published = source["wanted_tokens"], source["published_tokens"]
    size = f" of about {published:.3g} published ({wanted / published:.2f} epochs)" if published else ""
    return f"{wanted:.4g} tokens wanted{size}. Not known yet: {source['missing']}"
