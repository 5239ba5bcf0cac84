"""The sections of an experiment that the trainer owns: `Train` (identity), `Impl` and `Log` (not)."""

from __future__ import annotations

from typing import Any, Literal, Self

import pydantic

from slm.config.base import Config
from slm.config.durations import Duration
from slm.train.budget import Budget
from slm.train.distill.config import Distill, weights_named
from slm.train.optim import AdamW, OptimSlot
from slm.train.schedule import ScheduleSlot, WarmupStableDecay


class Train(Config):
    """What is optimised, with what, for how long. Part of the identity."""

    seed: int = 0
    """Seed of the initial weights. The order of the data has its own: ``data.seed``."""
    budget: Budget = Budget(tokens_per_param=20)
    batch_tokens: int = pydantic.Field(524_288, gt=0)
    """Tokens per optimiser step, over all processes: a multiple of ``data.seq_len``."""
    optim: OptimSlot = AdamW()
    schedule: ScheduleSlot = WarmupStableDecay()
    clip: float = pydantic.Field(1.0, gt=0)
    """Largest global gradient norm."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products; weights, optimiser state and statistics stay fp32. auto: bf16 where the device
    has instructions for it, else fp32. It is settled when the run is composed, so the identity holds what is computed."""
    init_from: str | None = None
    """Start from these weights instead of random ones: a run, a checkpoint, or a Hugging Face directory of the same shape. Weights
    only; optimisers, schedule and data start afresh."""
    init_from_hash: str | None = None
    """Names the weights of ``init_from``. Filled in when the run is composed; the identity has it in place of the path."""
    distill: Distill | None = None
    """Learn from a teacher as well."""

    def settled(self, device: str) -> Self:
        """With ``precision`` chosen for the device that ``impl.device`` names, and given weights named by their hash."""
        changes: dict[str, Any] = {}
        if self.precision == "auto":
            from slm.model.precision import fast_bf16
            from slm.train.parallel import pick_device

            changes["precision"] = "bf16" if fast_bf16(pick_device(device)) else "fp32"
        if self.init_from is not None and self.init_from_hash is None:
            changes["init_from_hash"] = weights_named(self.init_from, "train.init_from")
        if self.distill is not None and self.distill.teacher_hash is None:
            changes["distill"] = self.distill.settled()
        return self.with_(**changes) if changes else self


def what_counts(train: dict[str, Any]) -> dict[str, Any]:
    """Of a dumped `Train`, what defines the experiment: given weights by their hash, wherever they lie. Options that were never
    asked for are left out, so that experiments from before there were such options keep their names."""
    kept = {k: v for k, v in train.items() if k != "init_from"}
    for option in ("init_from_hash", "distill"):
        if kept.get(option) is None:
            kept.pop(option, None)
    if "distill" in kept:
        kept["distill"] = {k: v for k, v in kept["distill"].items() if k not in ("teacher", "cache")}
    return kept


class Impl(Config):
    """How it is executed. None of this may change the result beyond rounding."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    threads: int | None = pydantic.Field(None, gt=0)
    """CPU threads per process; None leaves torch's choice."""
    micro_batch: int | None = pydantic.Field(None, gt=0)
    """Rows per forward pass and process; None takes the whole share of the global batch."""
    compile: bool = False
    attention: Literal["auto", "sdpa", "matmul"] = "auto"
    data_dir: str = "data"
    """Where token stores are kept."""
    workers: int | None = pydantic.Field(None, gt=0)
    """Processes that tokenise; None takes one per core, or a single one for little text."""
    tokenizer_backend: Literal["auto", "hf", "tiktoken", "gigatoken", "sentencepiece"] = "auto"
    """The library that encodes; each is checked against the tokenizer's own on the first documents of every file."""


class Wandb(Config):
    """The optional Weights & Biases mirror. It may fail without hurting the run."""

    mode: Literal["off", "offline", "online"] = "off"
    project: str = "slm"
    entity: str | None = None


class Log(Config):
    """What is written down, and when."""

    dir: str | None = None
    """The run directory; None is ``runs/<name>``."""
    every: int = pydantic.Field(10, gt=0)
    """Steps between records in metrics.jsonl."""
    eval_every: Duration | None = Duration.parse("10%")
    """Between evaluations on held-out rows; None: none."""
    eval_rows: int = pydantic.Field(64, gt=0)
    """Held-out rows of an evaluation in the loop. The final one takes every held-out document."""
    checkpoint_every: Duration | None = Duration.parse("10%")
    """Between checkpoints (a last one is always written); None: only the last."""
    keep: int = pydantic.Field(2, gt=0)
    """Newest checkpoints to keep."""
    wandb: Wandb = Wandb()
