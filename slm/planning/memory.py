"""What a run needs of one process's memory."""

from __future__ import annotations

from typing import Any

from slm.cost.cost import ModelCost
from slm.cost.memory import BYTES, StepMemory, training_bytes
from slm.model.config import Model
from slm.run import Run
from slm.train import footprint
from slm.train.course import Course
from slm.train.distill.config import Distill
from slm.train.given import given_config


def rows_of(run: Run, world: int) -> int:
    """Rows of a forward pass of one process."""
    share = max(1, run.train.batch_tokens // run.data.seq_len // world)
    return min(share, run.impl.micro_batch or share)


def memory_of(run: Run, costs: ModelCost, teacher: Model | None, rows: int, world: int, device: str) -> dict[str, Any]:
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


def teacher_of(run: Run) -> Model | None:
    """The shape of a teacher that reads every batch; None if there is none."""
    distill = run.train.distill
    return given_config(distill.teacher) if distill and distill.cache is None and distill.teacher else None


def _teacher_bytes(distill: Distill | None, teacher: Model | None, tokens: int) -> int:
    """Its weights, and what goes into its head, which is fp32; of a cache, what it says: a number and a logarithm for each token that
    is told apart."""
    if teacher is not None:
        return BYTES * (teacher.costs().params["unique"] + tokens * teacher.dim)
    return tokens * (distill.top_k or 0) * (8 + BYTES) if distill is not None else 0
