"""`slm bench train`: our trainer beside Hugging Face's Trainer, litgpt and a plain loop, and what our loop adds to the bare work."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slm.bench.clock import Timing, rates, timing_of
from slm.bench.corpus import Work
from slm.bench.jobs import run_job
from slm.bench.machine import machine
from slm.bench.results import Result, Target, median, result
from slm.bench.slices import Contestant, in_slices
from slm.bench.training.added import overhead, records
from slm.bench.training.job import SHAPES, Job
from slm.config.errors import ConfigError, RunError, suggest
from slm.train.recording import WARM_UP

PEERS = {"HF Trainer": ("transformers", "accelerate"), "litgpt": ("litgpt",), "plain loop": ()}
"""Trainers beside ours, and the packages that they need."""
WARM = 3
"""Steps before the clock runs."""
TEXT_MB = 2
EXECUTED: dict[str, dict[str, Any]] = {
    "": {},
    "recorded": {"cuda_graphs": True},
    "compiled": {"compile": "blocks"},
    "compiled and recorded": {"compile": "blocks", "cuda_graphs": True},
}
"""Ways of executing our trainer's steps on a GPU, and what of ``impl`` they are."""
SLICE_S = 0.5
"""How long a trainer goes on before the next one's turn, on a CPU."""


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

    model: str
    steps: int
    repeats: int
    threads: int
    device: str

    def check(self) -> None:
        """Raise `ConfigError` for what can't be."""
        if self.model not in SHAPES:
            raise ConfigError(f"There is no benchmark model {self.model!r}. {suggest(self.model, SHAPES)}")
        if self.steps < 10 or self.repeats < 1 or self.threads < 1:
            raise ConfigError(
                f"--steps {self.steps} --repeats {self.repeats} --threads {self.threads}: at least 10 steps (the trainers write a "
                f"record every ten), one repeat and one thread."
            )


def run(
    only: Sequence[str] = (),
    *,
    model: str = "quick",
    steps: int = 20,
    repeats: int = 3,
    threads: int = 1,
    device: str = "auto",
    work: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
    found: Callable[[Result], None] = lambda _: None,
) -> tuple[dict[str, Any], list[Result]]:
    """Measure; returns (machine and settings, results).

    Args:
        only: names of `PARTS`; none: all.
        model: a name of `SHAPES`.
        steps: steps that are timed, in each of ``repeats`` turns of every trainer.
        threads: of torch, in every trainer.
        device: cpu, cuda, or auto.
        work: where text, tokenizer and store are made and kept for a next time; None: a place that is removed again.
        tell, found: called with what begins, and with every result as it comes.

    Raises:
        ConfigError: no such part, model or device, or numbers that can't be.
        RunError: a trainer failed, or didn't train the model that it should have.
    """
    from slm.model.precision import fast_bf16
    from slm.train.parallel.world import pick_device

    for name in only:
        if name not in PARTS:
            raise ConfigError(f"There is no part {name!r} of this benchmark. {suggest(name, PARTS)}")
    settings = Settings(model, steps, repeats, threads, pick_device(device).type)
    settings.check()
    for name in only:
        if (place := PARTS_ON.get(name, settings.device)) != settings.device:
            raise ConfigError(
                f"--only {name} is measured on {place}, and this is {settings.device}. Leave it out, or set --device {place}."
            )
    precision = "bf16" if fast_bf16(pick_device(device)) else "fp32"
    report: dict[str, Any] = {"machine": machine(), "settings": {**vars(settings), "precision": precision}}
    if settings.device == "cuda":
        import torch

        report["machine"]["gpu"] = torch.cuda.get_device_name()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="slm-bench-") as temporary:
        root = work or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        tell("text, tokenizer and rows")
        job = _prepared(root, settings, precision)
        report["settings"]["params"] = SHAPES[model].params(job.vocab)
        for name in only or (n for n in PARTS if PARTS_ON.get(n, settings.device) == settings.device):
            tell(name)
            for one in PARTS[name](job, repeats):
                found(one)
                results.append(one)
    return report, results


def _prepared(root: Path, settings: Settings, precision: str) -> Job:
    """The work on disk: a token store for us, and the very same rows, in the same order, in a flat file for the others."""
    from slm.data.corpus import Corpus
    from slm.data.ingest.build import build
    from slm.data.ingest.config import Curation
    from slm.data.plan.of_corpus import plan_of
    from slm.data.sources.local import Local
    from slm.data.tokenizer import FromFile

    work, shape = Work(root, TEXT_MB, settings.repeats), SHAPES[settings.model]
    tokenizer = FromFile(path=str(work.tokenizer()))
    store = build(root / "store", (Local(paths=(str(work.text()),)),), tokenizer, Curation(heldout=0), workers=1)
    steps = max(settings.steps, 20)  # what the overheads need
    job = Job(
        str(root),
        "",
        shape,
        store.tokenizer.vocab_size,
        WARM,
        settings.steps,
        settings.threads,
        settings.device,
        precision,
    )
    plan = plan_of(Corpus({"store": store}), job.run().data)
    read = plan.gather(np.arange((WARM + steps) * shape.rows))
    last = np.where(read.targets[:, -1:] < 0, store.tokenizer.eot_id, read.targets[:, -1:])
    np.concatenate([read.tokens, last], axis=1).astype("<u2").tofile(root / "rows.bin")
    return job


# ---- beside others ----------------------------------------------------------------------------------


def beside(job: Job, repeats: int) -> Iterator[Result]:
    """Tokens per second of every trainer, by the processors' time and by the wall; ours over each of them."""
    missing = {name: [p for p in needs if importlib.util.find_spec(p) is None] for name, needs in PEERS.items()}
    names = ["slm", *(name for name, lacks in missing.items() if not lacks)]
    turns = [_turn(job, names) for _ in range(repeats)]
    reports = {name: [turn[name] for turn in turns] for name in names}
    for name in names:
        _trained(job, name, reports[name])
    timings = {name: [timing_of(report) for report in found] for name, found in reports.items()}
    ours = _rates(job, timings["slm"])
    for name, lacks in missing.items():
        theirs = _rates(job, timings[name]) if name in timings else None
        yield result(
            f"train, beside {name}",
            ours[0],
            "ktok/s",
            peer=name if theirs else f"{name} (not measured: {' and '.join(lacks)} not installed)",
            peer_value=theirs and theirs[0],
            target=Target(">=", 1.0, "ratio"),
            wall=(ours[1], theirs and theirs[1]),
            note=_losses(job, {n: reports[n] for n in names}),
        )
    for name, lacks in missing.items():
        if not lacks:
            yield _memory(job, name, reports)


def _turn(job: Job, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Every trainer's report: in slices, on a CPU; one after the other on a GPU, whose memory they would have to share."""
    with tempfile.TemporaryDirectory(prefix="out-", dir=job.root) as folder:
        arguments: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(names):
            out = Path(folder, str(number))
            out.mkdir()
            arguments[name] = {"trainer": name, "job": {**job.as_dict(), "out": str(out)}}
        if job.device.startswith("cuda"):
            return {name: run_job("train", **given) for name, given in arguments.items()}
        return in_slices({name: Contestant("train", given, SLICE_S) for name, given in arguments.items()})


def _trained(job: Job, name: str, reports: list[dict[str, Any]]) -> None:
    """Raise `RunError` unless the trainer trained a model of the right size and its loss fell."""
    wanted = job.shape.params(job.vocab)
    for report in reports:
        first, *rest = report["losses"]
        if report["params"] != wanted:
            raise RunError(
                f"{name} trained {report['params']:,} parameters instead of {wanted:,}: it is another model."
            )
        if not rest or not rest[-1] < first:
            raise RunError(f"The loss of {name} didn't fall: {report['losses']}. What doesn't train isn't measured.")


def _losses(job: Job, reports: dict[str, list[dict[str, Any]]]) -> str:
    last = ", ".join(f"{name} {found[0]['losses'][-1]:.2f}" for name, found in reports.items())
    s, on_gpu = job.shape, job.device.startswith("cuda")
    sliced = "" if on_gpu else f", in slices of {SLICE_S:g} s in turn"
    compiled = "none of them is compiled, but for the attention of slm" if on_gpu else "none of them is compiled"
    return (
        f"{job.shape.params(job.vocab):,} parameters in all of them, {s.rows} rows of {s.seq_len} tokens a step, {job.precision}, "
        f"{job.steps} steps after {job.warm} that don't count{sliced}; the last loss written down: {last}. slm keeps documents apart within a "
        f"row, the others don't; {compiled}"
    )


def _memory(job: Job, name: str, reports: dict[str, list[dict[str, Any]]]) -> Result:
    peaks = {n: median([r["memory"] / 2**30 for r in reports[n]]) for n in ("slm", name)}
    on_gpu = "the most of the GPU's memory that was in use"
    note = on_gpu if job.device.startswith("cuda") else "resident memory of the process at its peak, libraries included"
    return result(
        f"memory, beside {name}", peaks["slm"], "GiB", peer=name, peer_value=peaks[name], less_is_better=True, note=note
    )


# ---- ours, executed otherwise ------------------------------------------------------------------------


def executed(job: Job, repeats: int) -> Iterator[Result]:
    """Tokens per second of our trainer compiled and recorded, over the same kernels one by one."""
    warm = replace(job, warm=job.warm + WARM_UP)  # recording is over, too
    turns = [
        {how: _turn(replace(warm, impl=impl), ["slm"])["slm"] for how, impl in EXECUTED.items()} for _ in range(repeats)
    ]
    found = {}
    for how in EXECUTED:
        reports = [turn[how] for turn in turns]
        _trained(job, "slm", reports)
        found[how] = _rates(job, [timing_of(report) for report in reports])
    for how, impl in EXECUTED.items():
        if impl:
            yield result(
                f"train, {how}",
                found[how][0],
                "ktok/s",
                peer="kernels one by one",
                peer_value=found[""][0],
                wall=(found[how][1], found[""][1]),
                note=f"{job.shape.params(job.vocab):,} parameters, {job.shape.rows} rows of {job.shape.seq_len} tokens a step, {job.precision}",
            )


def _rates(job: Job, timings: list[Timing]) -> tuple[float, float]:
    """Medians of thousands of tokens per second of processor time, and by the wall; both by the wall on a GPU, whose work the
    processors' time says nothing of."""
    by_processors, by_wall = rates(timings, 1e3)
    return (by_wall if job.device.startswith("cuda") else by_processors), by_wall


PARTS: dict[str, Callable[[Job, int], Iterator[Result]]] = {
    "beside": beside,
    "executed": executed,
    "overhead": overhead,
    "records": records,
}
"""What is measured, by name: functions that take the job and a number of repeats, and yield results."""
PARTS_ON = {"executed": "cuda", "overhead": "cpu", "records": "cpu"}
"""Where a part says something, if not everywhere: on a GPU, processor time is no measure of a loop's overhead."""
