"""Everything knowable about a run before it is started."""

from __future__ import annotations

import os
from typing import Any

from slm.cost.memory import training_bytes
from slm.data.prepare import store_path
from slm.data.store import Store
from slm.export.targets import choose, why_not
from slm.run import Run

CHINCHILLA = 20
"""Tokens per parameter that are compute-optimal (Hoffmann et al. 2022, arXiv 2203.15556)."""
MANY_EPOCHS = 4
"""Repeating data more often than this is worth clearly less than new data (Muennighoff et al. 2023, arXiv 2305.16264)."""


def plan_run(run: Run, recipe: str) -> dict[str, Any]:
    """The JSON of `slm plan`. Reads the token store's manifest if there is one; makes nothing."""
    cost = run.model.costs()
    steps = run.train.budget.total_steps(cost, run.train.batch_tokens)
    tokens = steps * run.train.batch_tokens
    world = int(os.environ.get("WORLD_SIZE", 1))
    share = run.train.batch_tokens // run.data.seq_len // world
    memory = training_bytes(
        params=cost.params["unique"],
        state_per_param=run.train.optim.state_per_param,
        rows=min(share, run.impl.micro_batch or share),
        seq_len=run.data.seq_len,
        dim=run.model.dim,
        layers=len(run.model.contexts),
        ffn_hidden=run.model.ffn.hidden or 0,
        bf16=run.train.precision == "bf16",
    )
    source = _source(run, tokens)
    target, reasons = choose(run.model)
    run.train.schedule.factor(0, total=steps, batch_tokens=run.train.batch_tokens, params=cost.params["unique"])
    return {
        "recipe": recipe,
        "identity": run.identity,
        "params": cost.params,
        "flops_per_token": cost.flops_per_token,
        "tokens": tokens,
        "tokens_per_param": tokens / cost.params["unique"],
        "chinchilla": tokens / cost.params["unique"] / CHINCHILLA,
        "steps": steps,
        "batch_tokens": run.train.batch_tokens,
        "flops_total": cost.flops_per_token["train"] * tokens,
        "memory": memory,
        "data": [source],
        "export": {
            "hf": {
                "class": target.architecture if target else None,
                "reason": None if target else why_not(reasons),
            }
        },
        "device": {},
        "warnings": _warnings(run, source, steps),
        "notes": list(run.notes),
    }


def _source(run: Run, tokens: int) -> dict[str, Any]:
    """Tokens and epochs of the run's source; None while there is no store."""
    path = store_path(run.data, run.tokenizer, run.impl.data_dir)
    known = None
    if (path / "manifest.json").exists():
        split = Store.open(path).split("train")
        known = split.tokens + len(split)
    return {
        "source": run.data.source.part_name,
        "tokens": known,
        "epochs": tokens / known if known else None,
        "store": str(path),
    }


def _warnings(run: Run, source: dict[str, Any], steps: int) -> list[str]:
    found = []
    if source["epochs"] and source["epochs"] > MANY_EPOCHS:
        found.append(
            f"{source['epochs']:.1f} epochs of {source['source']}: past {MANY_EPOCHS}, repeated text is worth clearly less than new text."
        )
    if run.data.source.part_name == "stdlib" and run.name != "quickstart":
        found.append("the source 'stdlib' is a smoke corpus: source code, and other for every Python version.")
    if steps < 10:
        found.append(f"only {steps} steps: the warm-up and the decay of the schedule can't do their work.")
    return found
