"""Work that is measured in a process of its own: ``python -m slm.bench.jobs NAME '{"argument": ...}'``.

A job reports one JSON object: when its timed part began, wall, cpu and amount of that, and the most memory it had. In a process of its
own nothing is warm from an earlier measurement, memory is its own, and a peer's logging stays out of the output.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slm.bench.line import AT_THE_LINE, at_the_line
from slm.config.errors import RunError


def run_job(name: str, **arguments: Any) -> dict[str, Any]:
    """Run a job; returns its report. Raises `RunError` with the end of its standard error if it fails."""
    done = subprocess.run(command_of(name, arguments), capture_output=True, text=True, env=environment())
    return report_of(name, arguments, done.returncode, done.stdout, done.stderr)


def command_of(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """The command of a job's process."""
    return [sys.executable, "-m", "slm.bench.jobs", name, json.dumps(arguments)]


def report_of(name: str, arguments: Mapping[str, Any], code: int, out: str, err: str) -> dict[str, Any]:
    """What a job reported. Raises `RunError` with the end of its standard error if it failed."""
    if code:
        raise RunError(f"The benchmark's job {name} {arguments} failed: {err.strip()[-2000:]}")
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report


def environment() -> dict[str, str]:
    """As ours, without the switches that the user or the tests set for a tokenizer's threads."""
    return {
        k: v for k, v in os.environ.items() if k not in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", AT_THE_LINE)
    }


def _bind(cores: int) -> None:
    """Let this process and its children run on so many cores alone, so that a worker has one thread, whose it may be.

    Two threads on the two halves of a core take more processor time than one after the other: rates per second of it
    could not be compared.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def tokenise(text: str, tokenizer: str, out: str, backend: str, workers: int) -> dict[str, Any]:
    """Files of JSON lines to a finished store, with all that `slm data tokenize` does by default, but none held out."""
    from slm.data.ingest.build import build
    from slm.data.ingest.config import Curation
    from slm.data.sources.local import Local
    from slm.data.tokenizer import FromFile
    from slm.data.tokenizer.backends import FAST

    _bind(workers)
    import tokenizers  # noqa: F401

    for name in FAST if backend == "auto" else {backend} & set(FAST):
        importlib.import_module(name)  # the peer's libraries are imported before its clock starts, too
        if name == "gigatoken":
            importlib.import_module("awkward")  # which its arrays are made of

    def work() -> float:
        part = FromFile(path=tokenizer)
        store = build(Path(out), (Local(paths=(text,)),), part, Curation(heldout=0), workers=workers, backend=backend)  # type: ignore[arg-type]
        return float(sum(store.split(name).tokens for name in ("train", "heldout")))

    return _timed(work)


def datatrove(text: str, tokenizer: str, out: str, workers: int) -> dict[str, Any]:
    """The same files through datatrove's DocumentTokenizer with its own defaults, shuffling included."""
    import tokenizers  # noqa: F401
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    _bind(workers)

    def work() -> float:
        LocalPipelineExecutor(
            [JsonlReader(text), DocumentTokenizer(f"{out}/tokens", tokenizer, seed=0)],
            tasks=len(list(Path(text).iterdir())),
            workers=workers,
            logging_dir=f"{out}/logs",
            start_method="spawn",  # as ours; the time of the default's children is nobody's, so it can't be counted
        ).run()
        return float(sum(file.stat().st_size for file in Path(out, "tokens").glob("*.ds")) // 2)

    return _timed(work)


def _timed(work: Callable[[], float]) -> dict[str, Any]:
    """The report of some work; see `slm.bench.clock.Timing`."""
    from slm.bench.clock import timed

    return asdict(timed(work, at_the_line))


def load(root: str, megabytes: float, seq_len: int, rows: int) -> dict[str, Any]:
    """One epoch of a store through the loader."""
    from slm.bench.corpus import Work
    from slm.data.loader import Loader
    from slm.data.plan import Plan

    store = Work(Path(root), megabytes, 1).token_store(megabytes).open()
    plan = Plan([("made", store)], seq_len=seq_len, eot=0, cache_dir=Path(root) / "plans")
    tokens = 0
    with Loader(plan, rows) as loader:
        for _ in range(max(1, plan.rows_per_epoch // rows)):
            tokens += next(loader).tokens_BT.numel()
    return {"amount": tokens}


TRAINERS = {
    "slm": "ours.train",
    "plain loop": "plain.train",
    "HF Trainer": "with_transformers.train",
    "litgpt": "with_litgpt.train",
    "overhead": "overhead.beside_bare",
    "watched": "overhead.watched",
}
"""Functions of `slm.bench.training` by the names that results give them."""


def train(trainer: str, job: dict[str, Any]) -> dict[str, Any]:
    """Some steps of training by one of `TRAINERS`; ``job`` is a `slm.bench.training.job.Job` as plain data."""
    from slm.bench.training.job import Job

    module, function = TRAINERS[trainer].split(".")
    work = getattr(importlib.import_module(f"slm.bench.training.{module}"), function)
    return dict(work(Job.of(job)))


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "tokenise": tokenise,
    "datatrove": datatrove,
    "load": load,
    "train": train,
}


class Watch:
    """Watches this process and its children, twenty times a second: the most memory of all of them together, in bytes.

    ``anonymous`` is what is theirs alone. ``resident`` has pages of mapped files on top (shared ones once for every
    process): the kernel takes those back whenever it wants, so they say how much memory is free and not how much is
    needed.
    """

    def __init__(self) -> None:
        self.anonymous = self.resident = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self._look()

    def _look(self) -> None:
        found = [_memory(pid) for pid in family(os.getpid())]
        self.anonymous = max(self.anonymous, sum(anonymous for anonymous, _ in found))
        self.resident = max(self.resident, sum(resident for _, resident in found))

    def close(self) -> dict[str, int]:
        """The peaks."""
        self._stop.set()
        self._thread.join()
        self._look()
        return {"anonymous": self.anonymous, "resident": self.resident}


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found, todo = [], [pid]
    while todo:
        found.append(one := todo.pop())
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                todo += map(int, task.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def _memory(pid: int) -> tuple[int, int]:
    """(anonymous, resident) bytes of a process; nothing if it has ended."""
    try:
        lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    except OSError:
        return 0, 0
    sizes = {line[0]: int(line[1]) << 10 for line in lines if line and line[0] in ("RssAnon:", "VmRSS:")}
    return sizes.get("RssAnon:", 0), sizes.get("VmRSS:", 0)


def main() -> None:
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    if name == "train":  # looking twenty times a second would cost a per cent of what is measured there
        print(json.dumps(JOBS[name](**arguments)))
        return
    watch = Watch()
    report = JOBS[name](**arguments)
    print(json.dumps({**report, **watch.close()}))


if __name__ == "__main__":
    main()
