"""The plan of a run: what it costs, holds and reads, and what is to be warned of."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from slm.config.errors import ConfigError, suggest
from slm.cost.device import MEMORY, memory_bytes, peak_flops
from slm.export.targets import choose, why_not
from slm.planning import warnings
from slm.planning.data import sources_of
from slm.planning.memory import memory_of, rows_of, teacher_of
from slm.run import Run
from slm.train.course import Course, resolved
from slm.train.parallel.world import pick_device
from slm.train.stages import stage_runs

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
    rows = rows_of(run, world)
    teacher = teacher_of(run)
    stages = stage_runs(run)
    memory = max(
        (memory_of(s, costs, teacher, rows_of(s, world), world, kind) for s in stages),
        key=lambda m: m["per_rank_bytes"],
    )
    sources = sources_of(run, course)
    target, reasons = choose(run.model)
    spent = _flops(stages, lambda s: s.costs().flops_per_token["train"])
    read = _flops(stages, lambda s: teacher.costs(s.data.seq_len).flops_per_token["forward"]) if teacher else 0.0
    on_device = _on_device(name, memory["per_rank_bytes"], spent + read, world)
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
        "flops_total": spent,
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
            *warnings.of_batch(run, world),
            *warnings.of_context(run),
            *warnings.of_data(run, sources, budget),
            *warnings.of_fit(on_device),
            *warnings.of_precision(run, name),
            *warnings.of_recording(run, kind, world),
        ],
        "notes": list(run.notes),
    }


def _flops(stages: list[Run], per_token: Callable[[Run], float]) -> float:
    """Of all stages, each with rows of its own length; of the trunk too, where the run is a branch."""
    total, begin = 0.0, 0
    for stage in stages:
        course = Course.of(stage, stage.costs())
        total += (course.tokens(course.end) - course.tokens(begin)) * per_token(stage)
        begin = course.end
    return total


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


def _on_device(name: str | None, needed: int, flops: float, world: int) -> dict[str, Any]:
    """Whether it fits, and how long it takes; empty for a device of which nothing is known."""
    there, peak = memory_bytes(name), peak_flops(name)
    if there is None or peak is None:
        return {}
    hours = flops / (peak * MFU * world) / 3600
    return {"name": name, "memory_bytes": there, "fits": needed <= there, "hours": hours, "mfu": MFU}
