"""Everything knowable about a run before it is started."""

from __future__ import annotations

import os
from typing import Any

from slm.cost.memory import training_bytes
from slm.data.plan import Horizon
from slm.data.plan.of_corpus import plan_of
from slm.data.prepare import missing, open_corpus, store_paths
from slm.export.targets import choose, why_not
from slm.run import Run
from slm.train.course import Course

CHINCHILLA = 20
"""Tokens per parameter that are compute-optimal (Hoffmann et al. 2022, arXiv 2203.15556)."""
MANY_EPOCHS = 4
"""Repeating data more often than this is worth clearly less than new data (Muennighoff et al. 2023, arXiv 2305.16264)."""


def plan_run(run: Run, recipe: str) -> dict[str, Any]:
    """The JSON of `slm plan`. Reads the token store's manifest if there is one; makes nothing."""
    cost = run.model.costs()
    course = Course.of(run, cost)
    steps, tokens = course.total, course.tokens(course.total)
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
    sources = _sources(run, course)
    target, reasons = choose(run.model)
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
        "data": sources,
        "export": {
            "hf": {
                "class": target.architecture if target else None,
                "reason": None if target else why_not(reasons),
            }
        },
        "device": {},
        "warnings": _warnings(run, sources, steps),
        "notes": list(run.notes),
    }


def _sources(run: Run, course: Course) -> list[dict[str, Any]]:
    """Tokens and epochs of each of the run's sources; None where a store is yet to be made."""
    paths = store_paths(run.data, run.tokenizer, run.impl.data_dir)
    listed: list[dict[str, Any]] = [
        {"source": name, "store": str(path), "tokens": None, "epochs": None} for name, path in paths.items()
    ]
    if missing(run.data, run.tokenizer, run.impl.data_dir):
        return listed
    full = run.train.batch_tokens // run.data.seq_len
    corpus = open_corpus(run.data, run.tokenizer, run.impl.data_dir)
    plan = plan_of(corpus, run.data, horizon=Horizon(course.total_rows, full, course.params))
    drawn = dict(zip(plan.names, plan.drawn(course.total_rows).tolist(), strict=True))
    by_name = {source.name: source for source in plan.sources}
    for entry in listed:
        index = by_name[entry["source"]].index
        entry |= {"tokens": index.kept, "epochs": drawn[entry["source"]] / index.rows}
    return listed


def _warnings(run: Run, sources: list[dict[str, Any]], steps: int) -> list[str]:
    found = []
    for source in sources:
        if source["epochs"] and source["epochs"] > MANY_EPOCHS:
            found.append(
                f"{source['epochs']:.1f} epochs of {source['source']}: past {MANY_EPOCHS}, repeated text is worth clearly less than new text."
            )
    if "stdlib" in run.data.members and run.name != "quickstart":
        found.append("the source 'stdlib' is a smoke corpus: source code, and other for every Python version.")
    if steps < 10:
        found.append(f"only {steps} steps: the warm-up and the decay of the schedule can't do their work.")
    return found
