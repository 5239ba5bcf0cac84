"""What a plan warns of: each is a sentence, and none of them stops a run."""

from __future__ import annotations

from typing import Any

from slm.cost.device import WITHOUT_FP8
from slm.run import Run
from slm.train.budget import Resolved
from slm.train.stages import stage_runs

MANY_EPOCHS = 4
"""Repeating data more often than this is worth clearly less than new data (Muennighoff et al. 2023, arXiv 2305.16264)."""


def of_batch(run: Run, world: int) -> list[str]:
    rows = run.train.batch_tokens // run.data.seq_len
    if rows % world:
        return [f"the global batch has {rows} rows, which {world} processes can't share evenly."]
    share, micro = rows // world, run.impl.micro_batch
    if micro and micro < share and share % micro:
        return [
            f"impl.micro_batch={micro} doesn't divide the {share} rows of a process: the last micro-batch of every step has {share % micro} "
            "rows only."
        ]
    return []


def of_context(run: Run) -> list[str]:
    longest = max(stage.data.seq_len for stage in stage_runs(run))
    context = run.model.context or longest
    if context <= longest or run.train.init_from is not None:
        return []
    return [
        f"model.context is {context:,}, but rows have {longest:,} tokens: positions beyond are never trained, and an export would promise them. "
        f"Set model.context={longest}, or train longer rows in a last stage (train.stages)."
    ]


def of_data(run: Run, sources: list[dict[str, Any]], budget: Resolved) -> list[str]:
    found = []
    for source in sources:
        name, epochs = source["source"], source["epochs"]
        guessed = epochs is None and source["published_tokens"]
        if guessed:
            epochs = source["wanted_tokens"] / source["published_tokens"]
        by = f" (by its published size of {source['published_tokens']:.3g} tokens)" if guessed else ""
        most = run.data.members[name].max_epochs
        if epochs and most and epochs > most:
            found.append(
                f"{epochs:.1f} epochs of {name}{by}, but its max_epochs is {most:g}: "
                + {"error": "the run will be refused.", "renormalise": "the other sources will take its place.", "stop": "the run will end early."}[run.data.on_exhaust]
            )  # fmt: skip
        elif epochs and epochs > MANY_EPOCHS:
            found.append(
                f"{epochs:.1f} epochs of {name}{by}: past {MANY_EPOCHS}, repeated text is worth clearly less than new text."
            )
    if "stdlib" in run.data.members and run.name != "quickstart":
        found.append("the source 'stdlib' is a smoke corpus: source code, and other for every Python version.")
    if budget.steps < 10:
        found.append(f"only {budget.steps} steps: the warm-up and the decay of the schedule can't do their work.")
    return found


def of_fit(on_device: dict[str, Any]) -> list[str]:
    if not on_device or on_device["fits"]:
        return []
    return [
        f"it doesn't fit into the {on_device['memory_bytes'] / 1e9:.0f} GB of one {on_device['name']}: lower impl.micro_batch, shard it over "
        "processes, or choose an optimiser with less state."
    ]


def of_precision(run: Run, device: str | None) -> list[str]:
    if run.train.precision == "fp8" and device is not None and any(known in device for known in WITHOUT_FP8):
        return [f"{device} has no 8-bit products (train.precision=fp8): the run will be refused."]
    return []


def of_recording(run: Run, device: str, world: int) -> list[str]:
    if run.impl.cuda_graphs and (device != "cuda" or world > 1):
        return [f"impl.cuda_graphs is for one process on a CUDA GPU, not {world} on {device}: the run will be refused."]
    return []
