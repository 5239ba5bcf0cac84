"""What `slm train` does from nothing to a report: prepare the data, train, finish.

Each stage can be interrupted and taken up again by the same command: a store is made whole or not at all,
training goes on from its newest checkpoint, and finishing is done again from the trained weights.
"""

from __future__ import annotations

import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydantic
import torch
from rich.console import Console

import slm
from slm import checkpoint
from slm.config.cores import usable_cores
from slm.config.errors import ConfigError, RunError
from slm.config.files import replace_durably
from slm.cost.resident import peak_resident_bytes
from slm.data.corpus import Corpus
from slm.data.ingest.progress import Shown
from slm.data.prepare import missing, prepare, store_paths, without_text
from slm.data.store import SPLITS
from slm.eval.baselines import compressors
from slm.eval.bpb import evaluate
from slm.export import export_hf
from slm.generate import Sampling, generate, pick_prompts
from slm.planning.warnings import of_context
from slm.report.run import write_run_report
from slm.run import Finish, Run, check_name
from slm.train import float8, recording
from slm.train.given import same_tokenizer
from slm.train.loop import TrainResult, train
from slm.train.parallel.world import World, join_world
from slm.train.progress import Silent, progress_for
from slm.train.rundir import refuse_other_experiment, run_dir_of
from slm.train.stages import stage_runs

PROMPT_TOKENS, SAMPLE_TOKENS = 24, 120


def launch(run: Run, *, console: Console | None = None, command: str = "") -> dict[str, Any]:
    """Execute a run, stage by stage if it has stages, and return its summary (also in ``summary.json``), or its last stage's.

    Args:
        console: where progress is shown; None shows nothing.
        command: the command line, for the report.

    The summary of an interrupted run has ``"interrupted": True`` and no evaluation.
    """
    check_name(run)
    stages, summary = stage_runs(run), dict[str, Any]()
    with join_world(run.impl.device) as world:
        console = console if console is not None and world.main else Console(quiet=True)
        for warning in of_context(run):
            console.print(f"Warning: {warning}", markup=False)
        left = _left(stages, console)
        corpora: list[Corpus | None] = [None] * len(left)
        if len(left) > 1:
            for stage in left:
                _check(stage, world)
            corpora = [*_prepare_all(left, console)]
        for stage, corpus in zip(left, corpora, strict=True):
            summary = _launch(stage, corpus, world, console, command)
            if summary["interrupted"] or summary["steps"] < (stage.train.until or 0):  # the hours were used up
                break
    return summary


def _left(stages: list[Run], console: Console) -> list[Run]:
    """The stages from the last one on that has a checkpoint; those before it are over, also where somebody removed them."""
    begun = [number for number, stage in enumerate(stages) if checkpoint.latest(run_dir_of(stage)) is not None]
    for stage in stages[: begun[-1]] if begun else []:
        there = checkpoint.latest(run_dir_of(stage)) is not None
        console.print(
            f"{run_dir_of(stage)} is {'trained already' if there else 'gone, and a later stage has begun'}.",
            markup=False,
        )
    return stages[begun[-1] :] if begun else stages


def _launch(run: Run, corpus: Corpus | None, world: World, console: Console, command: str) -> dict[str, Any]:
    """Execute one stage. ``corpus``: what it reads, if that is made already."""
    run_dir = run_dir_of(run)
    done = _finished(run, run_dir)
    made = _made(done)
    if done is not None and made is not None and (lacking := run.finish.beyond(made)):
        console.print(
            f"{run_dir} is trained already (step {done['steps']:,}), but not with {', '.join(lacking)}: it is finished anew.",
            markup=False,
        )
        run = run.with_(finish=run.finish.joined(made))
    elif done is not None:
        if done["report"] and world.main and not Path(done["report"]).exists():
            try:
                _report(run_dir)
            except RunError as error:
                console.print(str(error), markup=False)
        console.print(
            f"{run_dir} is trained already (step {done['steps']:,}); nothing to do. Its report: {done['report']}",
            markup=False,
        )
        return done
    _check(run, world)
    started = time.perf_counter()
    corpus = corpus if corpus is not None else _prepare(run, console)
    prepared = time.perf_counter() - started
    result = train(run, corpus, world, progress_for(console) if not console.quiet else Silent())
    summary = {"name": run.name, "identity": run.identity, "interrupted": result.interrupted, "steps": result.step}
    if not result.interrupted and world.main:
        summary = _finish(run, corpus, result, world, console, prepared, command)
    world.barrier()  # the next stage reads what is written here
    return summary


def _check(run: Run, world: World) -> None:
    """Raise `ConfigError` for what can't be trained here, before hours of tokenising."""
    refuse_other_experiment(run, run_dir_of(run))
    if run.train.precision == "fp8":
        float8.check_device(world.device)
    if run.impl.cuda_graphs:
        recording.check_place(world)


def _finished(run: Run, run_dir: Path) -> dict[str, Any] | None:
    """The summary of a run that is finished, as this very experiment."""
    file = run_dir / "summary.json"
    if not file.exists() or checkpoint.latest(run_dir) is None:
        return None
    try:
        summary = json.loads(file.read_text())
    except ValueError:  # UnicodeDecodeError is one
        summary = None  # damaged: what it says is found out again
    return summary if isinstance(summary, dict) and summary.get("identity") == run.identity else None


def _made(done: dict[str, Any] | None) -> Finish | None:
    """What was made of a finished run; None if its summary doesn't say."""
    try:
        return Finish(**(done or {})["finish"])
    except (KeyError, TypeError, pydantic.ValidationError):
        return None


def _prepare_all(stages: list[Run], console: Console) -> list[Corpus]:
    """Make what all stages read, before the first one trains. Raises `ConfigError` if a later one can't go on from the one before."""
    corpora = [_prepare(stage, console) for stage in stages]
    for stage, corpus in zip(stages, corpora, strict=True):
        if not same_tokenizer(corpora[0].tokenizer_bytes, corpus.tokenizer_bytes):
            raise ConfigError(
                f"train.stages: the text of {stage.name} has another tokenizer than that of {stages[0].name}: one that is trained on a run's own "
                f"text changes with its sources and filters. Name all sources in the run's own data.sources (a mixture may leave some of them "
                f"out at first), or give the run a tokenizer's file (tokenizer=file tokenizer.path=...; `slm tokenizer train` makes one)."
            )
    return corpora


def _prepare(run: Run, console: Console) -> Corpus:
    """Open the token stores, or make them and say so."""
    paths = store_paths(run.data, run.tokenizer, run.impl.data_dir)
    wanted = missing(run.data, paths)
    for name in without_text(run.data):
        console.print(
            f"The text of '{name}' isn't there any more: {paths[name]}, made of it before, is used.", markup=False
        )
    for name in wanted:
        console.print(
            f"No token store for source '{name}' yet: making {paths[name]} with a '{run.tokenizer.part_name}' tokenizer of "
            f"{run.tokenizer.vocab_size:,} tokens.",
            markup=False,
        )
    with Shown(console) as progress:
        corpus = prepare(
            run.data,
            run.tokenizer,
            run.impl.data_dir,
            workers=run.impl.workers,
            backend=run.impl.tokenizer_backend,
            progress=progress if wanted else None,
        )
    if not wanted:
        return corpus
    for split in SPLITS:
        documents, tokens = corpus.counts(split)
        console.print(f"  {split}: {documents:,} documents, {tokens:,} tokens", markup=False)
    return corpus


def _finish(
    run: Run, corpus: Corpus, result: TrainResult, world: World, console: Console, prepared: float, command: str
) -> dict[str, Any]:
    """Evaluate, sample, export and report; the summary is written last."""
    began = time.perf_counter()
    say = console.print
    model = result.model.eval()
    eot = corpus.tokenizer.eot_id
    params = run.costs().params
    tokens = result.tokens
    summary: dict[str, Any] = {
        "name": run.name,
        "identity": run.identity,
        "interrupted": False,
        "steps": result.step,
        "tokens": tokens,
        "params": params,
        "tokens_per_param": tokens / params["unique"],
        "flops": run.costs().flops_per_token["train"] * tokens,
        "skipped": result.skipped,
        "bpb": None,
        "heldout": None,
        "baselines": {},
        "samples": [],
        "export": [],
        "finish": run.finish.model_dump(mode="json"),
        "run_dir": str(result.run_dir),
        "command": command or f"slm train {result.run_dir / 'config.yaml'}",
    }
    if run.data.heldout:
        say("Evaluating on the held-out documents")
        score = evaluate(
            model, corpus.documents("heldout"), eot, context=run.data.seq_len, precision=run.train.precision
        )
        summary["bpb"] = score.bpb
        summary["heldout"] = {"docs": score.docs, "bytes": score.bytes, "tokens": score.tokens}
        if run.finish.baselines:
            summary["baselines"] = compressors(corpus.text("heldout"))
        if run.finish.samples:
            say("Sampling")
            summary |= _samples(run, corpus, result)
    for target in run.finish.export:
        say(f"Exporting to {target} and verifying")
        summary["export"].append(_export(target, result))
    summary["machine"] = _machine(world)
    summary["finished"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    summary["times"] = {"prepare": prepared, "train": result.seconds, "finish": time.perf_counter() - began}
    summary["report"] = str(result.run_dir / "report.html") if run.finish.report else None
    _write_json(result.run_dir / "summary.json", summary)
    if run.finish.report:
        _report(result.run_dir)
    return summary


def _report(run_dir: Path) -> None:
    try:
        write_run_report(run_dir)
    except RunError as error:
        raise RunError(
            f"{error} All else of the run is there; the same command makes the report, or slm report {run_dir}."
        ) from None


def _samples(run: Run, corpus: Corpus, result: TrainResult) -> dict[str, Any]:
    """Continuations of held-out documents."""
    sampling = Sampling(temperature=0.7, top_p=0.95, seed=run.train.seed)
    eot = corpus.tokenizer.eot_id
    documents = [doc.tokens for doc in corpus.documents("heldout")]
    samples = []
    for prompt in pick_prompts(documents, run.finish.samples, PROMPT_TOKENS):
        ids = list(
            generate(
                result.model,
                [eot, *prompt],
                max_new_tokens=SAMPLE_TOKENS,
                context=run.data.seq_len,
                sampling=sampling,
                stop=eot,
            )
        )
        samples.append(
            {"prompt": corpus.tokenizer.decode(prompt), "continuation": corpus.tokenizer.decode(ids, whole=False)}
        )
    return {"samples": samples, "sampling": {"temperature": sampling.temperature, "top_p": sampling.top_p}}


def _export(target: str, result: TrainResult) -> dict[str, Any]:
    """Export the newest checkpoint; what can't be exported is said, and doesn't cost the report."""
    from slm.config.errors import SlmError

    try:
        return export_hf(checkpoint.restore(result.run_dir), result.run_dir / target).to_json()
    except SlmError as error:
        return {"target": target, "class": None, "path": None, "verified": False, "error": str(error)}


def _machine(world: World) -> dict[str, Any]:
    """What it ran on."""
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    return {
        "device": f"{name} ({torch.get_num_threads()} threads)" if world.device.type == "cpu" else name,
        "cores": usable_cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "slm": slm.__version__,
        "peak_memory_bytes": peak_resident_bytes(),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    try:
        replace_durably(path, json.dumps(value, indent=1).encode())
    except OSError as error:
        raise RunError(f"Can't write {path}: {error.strerror or error}.") from None
