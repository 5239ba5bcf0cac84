"""Everything knowable about a run before it is started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from slm.config.errors import ConfigError, SlmError, suggest
from slm.cost.cost import ModelCost
from slm.cost.device import MEMORY, WITHOUT_FP8, memory_bytes, peak_flops
from slm.cost.memory import BYTES, StepMemory, training_bytes
from slm.data.config import Member
from slm.data.plan import Horizon
from slm.data.plan.of_corpus import plan_of
from slm.data.plan.stages import resolve_mixture, spans_of
from slm.data.plan.timeline import NEVER
from slm.data.prepare import missing, open_corpus, store_paths
from slm.export.targets import choose, why_not
from slm.model.config import Model
from slm.run import Run
from slm.train import footprint
from slm.train.budget import Resolved
from slm.train.course import Course, resolved
from slm.train.distill.config import Distill
from slm.train.given import given_config
from slm.train.parallel.world import pick_device
from slm.train.stages import stage_runs

MANY_EPOCHS = 4
"""Repeating data more often than this is worth clearly less than new data (Muennighoff et al. 2023, arXiv 2305.16264)."""
MFU = 0.4
"""Share of a device's peak at which the time of a run is estimated: what well-made trainers of such models reach."""


def plan_run(run: Run, recipe: str, *, device: str | None = None, processes: int | None = None) -> dict[str, Any]:
    """The JSON of `slm plan`. Reads the token stores' manifests if there are any; makes nothing, downloads nothing.

    Args:
        device: a GPU by its name, such as ``H100``, to plan for; None plans for the device that ``impl.device`` means here.
        processes: how many will run; None: as many as the launcher of this process says, or one.

    Raises:
        ConfigError: an unknown device; a schedule longer than the budget; a source with too little text.
    """
    world = processes or int(os.environ.get("WORLD_SIZE", 1))
    kind, name = _device(run, device)
    costs = run.costs()
    course = Course.of(run, costs)
    budget = resolved(course, costs)
    rows = _rows(run, world)
    teacher = _teacher(run)
    memory = max(
        (_memory(s, costs, teacher, _rows(s, world), world, kind) for s in stage_runs(run)),
        key=lambda m: m["per_rank_bytes"],
    )
    sources = _sources(run, course)
    target, reasons = choose(run.model)
    read = budget.tokens * teacher.costs(run.data.seq_len).flops_per_token["forward"] if teacher else 0.0
    on_device = _on_device(name, memory["per_rank_bytes"], budget.flops + read, world)
    return {
        "recipe": recipe,
        "identity": run.identity,
        "params": costs.params,
        "flops_per_token": costs.flops_per_token,
        "tokens": budget.tokens,
        "tokens_per_param": budget.tokens_per_param,
        "chinchilla": budget.chinchilla,
        "steps": budget.steps,
        "batch_tokens": run.train.batch_tokens,
        "flops_total": budget.flops,
        "flops_teacher": read,
        "processes": world,
        "micro_batch": rows,
        "memory": memory,
        "data": sources,
        "export": {
            "hf": {
                "class": target.architecture if target else None,
                "reason": None if target else why_not(reasons),
            }
        },
        "device": on_device,
        "warnings": [
            *_batch_warnings(run, world),
            *_context_warnings(run),
            *_data_warnings(run, sources, budget),
            *_fit_warnings(on_device),
            *_precision_warnings(run, name),
            *_recording_warnings(run, kind, world),
        ],
        "notes": list(run.notes),
    }


def _device(run: Run, asked: str | None) -> tuple[str, str | None]:
    """Type and name of the device that is planned for; no name if nothing is known about it."""
    if asked is not None:
        if memory_bytes(asked) is None:
            raise ConfigError(f"--device {asked}: slm has no data sheet of it. {suggest(asked, MEMORY)}")
        return "cuda", asked
    if run.impl.device not in ("auto", "cpu"):
        import torch

        if run.impl.device == "cuda" and torch.cuda.is_available():
            return "cuda", torch.cuda.get_device_name()
        return run.impl.device, None
    return pick_device(run.impl.device).type, None


def _rows(run: Run, world: int) -> int:
    """Rows of a forward pass of one process."""
    share = max(1, run.train.batch_tokens // run.data.seq_len // world)
    return min(share, run.impl.micro_batch or share)


def _memory(run: Run, costs: ModelCost, teacher: Model | None, rows: int, world: int, device: str) -> dict[str, Any]:
    """Bytes by kind for one process."""
    accumulates = run.train.batch_tokens // run.data.seq_len // world > rows or run.impl.cuda_graphs  # gradients stay
    parallel = run.impl.parallel
    held = footprint.of_forward_backward(
        run.model,
        rows=rows,
        seq_len=run.data.seq_len,
        precision=run.train.precision,
        device=device,
        accumulate=accumulates,
        attention=run.impl.attention,
        recompute=run.impl.recompute,
        bf16_weights=world > 1 and parallel.rounds_weights,
        distill=run.train.distill,
        teacher=teacher,
    )
    weights = BYTES * costs.params["unique"]
    of_optimizer, average = footprint.of_step(run.model, run.train.optim), weights if run.train.ema is not None else 0
    copied = weights + of_optimizer.saved + average if run.log.checkpoint_async else 0
    again = held.activations if _beside_a_recording(run, costs, rows, world) else 0
    exchange = parallel.exchange_bytes(*footprint.of_units(run.model), accumulates=accumulates) if world > 1 else 0
    step = StepMemory(
        costs.params["unique"], of_optimizer.state + average, held.activations + again, held.gradients, of_optimizer.workspace,
        accumulates, exchange, exchange_stays=not parallel.sharded, copied=copied, teacher=_teacher_bytes(run.train.distill, teacher, rows * run.data.seq_len),
    )  # fmt: skip
    return training_bytes(step, device=device, shards=parallel.shards(world) if world > 1 else 1)


def _beside_a_recording(run: Run, costs: ModelCost, rows: int, world: int) -> bool:
    """Whether micro-batches are run plainly while the memory of a recording (``impl.cuda_graphs``) is kept: those of another shape,
    and those whose layers are looked at."""
    if not run.impl.cuda_graphs or run.log.activations:
        return run.impl.cuda_graphs
    batches = {size // world for size in Course.of(run, costs).batches.rows}
    return len({min(size, rows) for size in batches} | {size % rows for size in batches} - {0}) > 1


def _teacher(run: Run) -> Model | None:
    """The shape of a teacher that reads every batch; None if there is none."""
    distill = run.train.distill
    return given_config(distill.teacher) if distill and distill.cache is None and distill.teacher else None


def _teacher_bytes(distill: Distill | None, teacher: Model | None, tokens: int) -> int:
    """Its weights, and what goes into its head, which is fp32; of a cache, what it says: a number and a logarithm for each token that
    is told apart."""
    if teacher is not None:
        return BYTES * (teacher.costs().params["unique"] + tokens * teacher.dim)
    return tokens * (distill.top_k or 0) * (8 + BYTES) if distill is not None else 0


def _on_device(name: str | None, needed: int, flops: float, world: int) -> dict[str, Any]:
    """Whether it fits, and how long it takes; empty for a device of which nothing is known."""
    there, peak = memory_bytes(name), peak_flops(name)
    if there is None or peak is None:
        return {}
    hours = flops / (peak * MFU * world) / 3600
    return {"name": name, "memory_bytes": there, "fits": needed <= there, "hours": hours, "mfu": MFU}


# ---- data -------------------------------------------------------------------------------------------------


def _sources(run: Run, course: Course) -> list[dict[str, Any]]:
    """What the run draws from each of its sources, and how often that goes through it.

    ``tokens`` and ``epochs`` are those of the store, None where it is yet to be made. ``published_tokens`` is what the source's maker
    says of its size.
    """
    wanted = _wanted(run, course)
    listed: list[dict[str, Any]] = [
        {
            "source": name, "store": None, "tokens": None, "epochs": None, "wanted_tokens": wanted[name],
            "published_tokens": member.source.published_tokens() if member.source is not None else None,
            "missing": _why_absent(member),
        }
        for name, member in run.data.members.items()
    ]  # fmt: skip
    if any(entry["missing"] for entry in listed):  # which store would be made of a text depends on the text
        for entry in listed:
            entry["missing"] = entry["missing"] or "its text is here, but not that of the other sources"
        return listed
    paths = store_paths(run.data, run.tokenizer, run.impl.data_dir)
    absent = missing(run.data, run.tokenizer, run.impl.data_dir)
    for entry in listed:
        entry["store"] = str(paths[entry["source"]])
        if entry["source"] in absent:
            entry["missing"] = "not tokenised yet; `slm train` does it, or `slm data tokenize`"
    if absent:
        return listed
    horizon = _horizon(run, course)
    plan = plan_of(open_corpus(run.data, run.tokenizer, run.impl.data_dir), run.data, horizon=horizon)
    drawn = dict(zip(plan.names, plan.drawn(horizon.rows or 0).tolist(), strict=True))
    by_name = {source.name: source for source in plan.sources}
    for entry in listed:
        index = by_name[entry["source"]].index
        entry |= {"tokens": index.kept, "epochs": drawn[entry["source"]] / index.rows}
    return listed


def _why_absent(member: Member) -> str | None:
    """Why the text of a source, or its ready-made store, can't be found; None if it can."""
    try:
        if member.source is not None:
            member.source.state()
        elif "://" not in str(member.store) and not Path(str(member.store)).expanduser().exists():
            return f"there is no store {member.store}"
    except SlmError as error:
        return str(error)
    return None


def _wanted(run: Run, course: Course) -> dict[str, int]:
    """Tokens that the mixture asks of each source, were there enough of it."""
    names = list(run.data.members)
    mixing = run.data.mixing
    if mixing is None:
        return {names[0]: course.tokens(course.total)}
    horizon = _horizon(run, course)
    spans = spans_of(mixing, names, run.data.seq_len, horizon)
    endless = np.full(len(names), NEVER, dtype=np.int64)
    rows = resolve_mixture(spans, endless, "error").timeline.due_at(horizon.rows or 0)
    return {name: round(float(n) * run.data.seq_len) for name, n in zip(names, rows, strict=True)}


def _horizon(run: Run, course: Course) -> Horizon:
    return Horizon(course.total_rows, run.train.batch_tokens // run.data.seq_len, course.params)


# ---- warnings ---------------------------------------------------------------------------------------------


def _batch_warnings(run: Run, world: int) -> list[str]:
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


def _context_warnings(run: Run) -> list[str]:
    longest = max(stage.data.seq_len for stage in stage_runs(run))
    context = run.model.context or longest
    if context <= longest or run.train.init_from is not None:
        return []
    return [
        f"model.context is {context:,}, but rows have {longest:,} tokens: positions beyond are never trained, and an export would promise them. "
        f"Set model.context={longest}, or train longer rows in a last stage (train.stages)."
    ]


def _data_warnings(run: Run, sources: list[dict[str, Any]], budget: Resolved) -> list[str]:
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


def _recording_warnings(run: Run, device: str, world: int) -> list[str]:
    if run.impl.cuda_graphs and (device != "cuda" or world > 1):
        return [f"impl.cuda_graphs is for one process on a CUDA GPU, not {world} on {device}: the run will be refused."]
    return []


def _precision_warnings(run: Run, device: str | None) -> list[str]:
    if run.train.precision == "fp8" and device is not None and any(known in device for known in WITHOUT_FP8):
        return [f"{device} has no 8-bit products (train.precision=fp8): the run will be refused."]
    return []


def _fit_warnings(on_device: dict[str, Any]) -> list[str]:
    if not on_device or on_device["fits"]:
        return []
    return [
        f"it doesn't fit into the {on_device['memory_bytes'] / 1e9:.0f} GB of one {on_device['name']}: lower impl.micro_batch, shard it over "
        "processes, or choose an optimiser with less state."
    ]
