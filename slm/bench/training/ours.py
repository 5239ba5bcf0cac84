"""slm's own loop, as `slm train` runs it: its loader, its metrics, its optimiser."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from slm.bench.training.job import Job, Stopwatch
from slm.data.prepare import prepare
from slm.train.loop import Session
from slm.train.metrics import read_metrics
from slm.train.parallel.world import World
from slm.train.progress import Silent


def session_of(job: Job) -> Session:
    """A session that is ready for its first step."""
    device, run = job.settled(), job.run()
    out = Path(job.out)
    out.mkdir(parents=True, exist_ok=True)
    corpus = prepare(run.data, run.tokenizer, run.impl.data_dir)
    session = Session(run, corpus, World(0, 1, device), out, Silent())
    session.start()
    return session


def train(job: Job) -> dict[str, Any]:
    """Train; what `slm.train.loop.train` does step by step."""
    with closing(session_of(job)) as session:
        watch = Stopwatch(job)
        while session.state.step < session.course.total:
            session.train_step()
            session.write_down()
            watch.lap()
        params = sum(p.numel() for p in session.state.model.parameters())
    losses = [r["loss"] for r in read_metrics(Path(job.out) / "metrics.jsonl") if r["kind"] == "train"]
    return watch.report(params, losses)
