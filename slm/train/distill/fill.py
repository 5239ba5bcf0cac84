"""Making a cache: the teacher reads the rows of a plan in order, shard after shard.

A shard is written aside and renamed, checksums first, so that it is whole once it has its name. Killed at any moment, the
same command goes on with the first shard that is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slm.config.errors import ConfigError, RunError
from slm.config.files import locked, replace_durably
from slm.config.identity import differences
from slm.data.corpus import Corpus
from slm.data.loader import make_batch
from slm.data.plan import Horizon, Plan
from slm.data.plan.of_corpus import plan_of
from slm.data.store.checked import checksums
from slm.model.divergence import Outcomes, outcomes, teacher_logits
from slm.model.precision import autocast
from slm.train.course import Course
from slm.train.distill.cache import FORMAT, Layout, read_header, shard_files
from slm.train.distill.teacher import OnlineTeacher

if TYPE_CHECKING:
    from slm.run import Run

SHARD_BYTES = 32 << 20
"""About the size of a shard, which is also what a kill costs at most, and what is held in memory."""
LOGIT_BYTES = 64 << 20
"""Of a teacher's logits at a time."""


def plan_for(run: "Run", corpus: Corpus) -> tuple[Plan, int]:
    """The plan that a run trains on, and how many of its rows it reads."""
    course = Course.of(run, run.costs())
    full = run.train.batch_tokens // run.data.seq_len
    plan = plan_of(corpus, run.data, horizon=Horizon(course.total_rows, full, course.params))
    return plan, course.within(plan.limit).total_rows


def header_of(
    run: "Run", corpus: Corpus, plan: Plan, *, rows: int, teacher: str, top_k: int, temperature: float
) -> dict[str, Any]:
    """What a cache is of. ``teacher``: the hash of its weights."""
    header: dict[str, Any] = {
        "format": FORMAT,
        "plan": plan.hash,
        "teacher": teacher,
        "tokenizer": corpus.tokenizer.sha256,
        "vocab": run.model.vocab_,
        "seq_len": run.data.seq_len,
        "temperature": temperature,
        "top_k": top_k,
        "rows": rows,
        "rows_per_shard": 1,
    }
    return header | {"rows_per_shard": max(1, SHARD_BYTES // Layout(header).row_bytes)}


def fill(
    path: Path,
    header: dict[str, Any],
    plan: Plan,
    teacher: OnlineTeacher,
    *,
    precision: str,
    batch_rows: int = 8,
    say: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write whatever is missing of a cache; returns the number of shards written now.

    Args:
        batch_rows: rows that the teacher reads at once.
        say: told the number of finished rows, and of all.

    Raises:
        ConfigError: the directory holds a cache of something else.
        RunError: the disk is full or not writable.
    """
    layout, written = Layout(header), 0
    try:
        (path / "shards").mkdir(parents=True, exist_ok=True)
        with locked(path / ".lock"):
            _claim(path, header)
            for shard in range(layout.shards):
                file, sums = shard_files(path, shard)
                rows = layout.rows_of(shard)
                if not file.is_file():  # it has its name only once it is whole
                    raw = _records(layout, plan, teacher, rows, precision, batch_rows, header["temperature"])
                    replace_durably(sums, checksums([raw]).tobytes())
                    replace_durably(file, raw)
                    written += 1
                say(rows.stop, layout.rows)
    except OSError as error:
        raise RunError(
            f"Can't write the cache {path}: {error.strerror or error}. Make room, and run the same command again: finished shards are kept."
        ) from None
    return written


def _claim(path: Path, header: dict[str, Any]) -> None:
    """Hold the directory for this cache, and clear away what a killed process left."""
    if (path / "cache.json").is_file():
        changed = differences(read_header(path), header)
        if changed:
            raise ConfigError(
                f"{path} holds another cache. It differs in {'; '.join(changed)}. Give this one its own place with --out, or remove {path}."
            )
    for left in [*path.glob(".*.partial"), *(path / "shards").glob(".*.partial")]:
        left.unlink(missing_ok=True)
    replace_durably(path / "cache.json", json.dumps(header, indent=1).encode())


def _records(
    layout: Layout, plan: Plan, teacher: OnlineTeacher, rows: range, precision: str, batch_rows: int, temperature: float
) -> bytes:
    device = teacher.model.embedding.weight.device
    pieces = []
    for i in range(0, len(rows), batch_rows):
        batch = make_batch(plan, rows[i : i + batch_rows]).to(device)
        with torch.no_grad(), autocast(device, precision):
            features_NE, head = teacher.known(teacher.answer(batch))
            step = max(16, LOGIT_BYTES // (4 * len(head.weight_VD)))
            parts = [
                outcomes(teacher_logits(head, x_CE) / temperature, layout.top_k) for x_CE in features_NE.split(step)
            ]
        pieces.append(layout.pack(Outcomes(*(torch.cat(columns) for columns in zip(*parts, strict=True)))))
    return b"".join(pieces)
