"""The first pass on an engine that clusters have: datatrove's executors (this machine, Slurm, Ray).

The engine gets nothing but unit numbers to share out; what a unit becomes is the same code as without it, so the
store's bytes are the same. Whether a unit is done is seen from its folder, not from the engine's own marks, so an
engine may be changed, or left, in the middle.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from slm.config.errors import ConfigError, SlmError
from slm.data.ingest.merge import unit_folder
from slm.data.ingest.unit import Job, Workshop

EngineName = Literal["pool", "datatrove", "datatrove-slurm", "datatrove-ray"]


class NotYet(SlmError):
    """The work goes on elsewhere; the same command takes it up later (exit code 75, as for a stopped training)."""

    exit_code = 75


def run_units(
    engine: EngineName, job: Job, work: Path, *, tasks: int, workers: int, settings: dict[str, Any] | None = None
) -> None:
    """Do all units that aren't done yet.

    Args:
        tasks: into how many the units are shared out.
        workers: of them at a time (``datatrove``: processes here).
        settings: the executor's own, such as ``partition`` and ``time`` of Slurm.

    Raises:
        NotYet: the units were handed to a queue, or are waiting in it.
        ConfigError: datatrove isn't installed, or its executor doesn't take the settings.
    """
    missing = [i for i in range(len(job.units)) if not unit_folder(work, i).is_dir()]
    if not missing:
        return
    submitted = work / "submitted"
    if engine == "datatrove-slurm" and submitted.exists():
        raise NotYet(_waiting(missing, job, work) + f" To hand them in again, remove {submitted}.")
    executor = _executor(
        engine, tasks=min(tasks, len(missing)), workers=workers, logs=work / "logs", settings=settings or {}
    )
    executor.pipeline = [partial(_step, job=job, work=work, missing=missing)]
    executor.run()
    if engine == "datatrove-slurm":
        submitted.touch()
        raise NotYet(_waiting(missing, job, work))


def _step(data: Any, rank: int, world_size: int, *, job: Job, work: Path, missing: list[int]) -> Iterator[Any]:
    """One task: every ``world_size``-th of the missing units. A pipeline step of datatrove, with nothing to hand on."""
    workshop = Workshop(job)
    for index in missing[rank::world_size]:
        workshop.process(index, unit_folder(work, index), lambda *_: None)
    return iter(())


def _executor(engine: str, *, tasks: int, workers: int, logs: Path, settings: dict[str, Any]) -> Any:
    try:
        if engine == "datatrove":
            from datatrove.executor.local import LocalPipelineExecutor as Executor

            settings = {"workers": workers, "start_method": "spawn", **settings}
        elif engine == "datatrove-slurm":
            from datatrove.executor.slurm import SlurmPipelineExecutor as Executor
        else:
            from datatrove.executor.ray import RayPipelineExecutor as Executor

            settings = {"workers": workers, **settings}
    except ImportError as error:
        raise ConfigError(
            f"--engine {engine} needs datatrove ({error}). Install it: pip install 'slm[datatrove]'."
        ) from None
    try:
        return Executor(pipeline=[], tasks=tasks, logging_dir=str(logs), skip_completed=False, **settings)
    except TypeError as error:
        raise ConfigError(f"--engine {engine}: its executor doesn't take these settings ({error}).") from None


def _waiting(missing: list[int], job: Job, work: Path) -> str:
    return (
        f"{len(missing)} of {len(job.units)} units of {work} are still to be tokenised by jobs in the queue (logs: {work / 'logs'}). "
        f"Run the same command again when they have ended."
    )
