"""The sections of an experiment that the trainer owns: `Train` (identity), `Impl` and `Log` (not)."""

from __future__ import annotations

from typing import Any, Literal, Self

import pydantic

from slm.checkpoint.config import Retention
from slm.config.base import Config, Seed
from slm.config.durations import Duration, InSteps
from slm.config.errors import ConfigError
from slm.train.averaging import Averaging
from slm.train.budget import Budget
from slm.train.distill.config import Distill, weights_named
from slm.train.optim import AdamW, OptimSlot
from slm.train.parallel.modes import Automatic, ParallelSlot
from slm.train.recompute import NoRecompute, RecomputeSlot
from slm.train.schedule import BatchRamp, ScheduleSlot, WarmupStableDecay
from slm.train.spikes import Spikes


class Ancestor(Config):
    """What a branch left, and where."""

    trunk: str
    """Identity of the run that it left."""
    step: int = pydantic.Field(ge=0)
    """Steps that it shares with it."""


class Stage(Config):
    """A part of a run in which something is different; see `slm.train.stages`."""

    model_config = pydantic.ConfigDict(populate_by_name=True, serialize_by_alias=True)

    name: str = pydantic.Field(pattern=r"^\w[\w.-]*$")
    """What its directory is called, behind its number."""
    begin: InSteps = pydantic.Field(Duration(0, "steps"), alias="from")
    """Where it begins: steps, tokens, or a share of the budget."""
    change: dict[str, Any] = {}
    """Dotted keys and their values from here on, such as ``data.seq_len: 8192``."""


class Train(Config):
    """What is optimised, with what, for how long. Part of the identity."""

    seed: Seed = 0
    """Seed of the initial weights. The order of the data has its own: ``data.seed``."""
    budget: Budget = Budget(tokens_per_param=20)
    batch_tokens: int = pydantic.Field(524_288, gt=0)
    """Tokens per optimiser step, over all processes: a multiple of ``data.seq_len``."""
    optim: OptimSlot = AdamW()
    schedule: ScheduleSlot = WarmupStableDecay()
    clip: float = pydantic.Field(1.0, gt=0)
    """Largest global gradient norm."""
    spikes: Spikes = Spikes()
    """Which steps are skipped for their gradient: those that aren't finite, and outliers if told so."""
    batch_ramp: BatchRamp | None = None
    """Smaller batches at the beginning; None: full ones from the first step."""
    stages: tuple[Stage, ...] = ()
    """Parts of the run in which the data, the length of rows or the rate are others."""
    until: int | None = pydantic.Field(None, gt=0)
    """Step at which a stage ends, though budget and schedule go on."""
    branch: Ancestor | None = None
    """The trunk that this run left; `slm train --branch-from` sets it."""
    ema: Averaging | None = None
    """A running average of the weights beside them: evaluations use it, checkpoints hold both; None: none."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """Arithmetic of the matrix products; weights, optimiser state and statistics stay fp32. auto: bf16 where the device
    has instructions for it, else fp32. fp8: bf16, and 8 bits in the blocks' linear layers (`slm.train.float8`). It is settled when the run is composed, so the identity holds what is computed."""
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
            from slm.train.parallel.world import pick_device

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
    parallel: ParallelSlot = Automatic()
    """How several processes (``torchrun``) share the model: ddp, fsdp or hsdp."""
    micro_batch: int | None = pydantic.Field(None, gt=0)
    """Rows per forward pass and process; None takes the whole share of the global batch."""
    compile: Literal["none", "blocks", "whole"] = "none"
    """blocks: each block becomes fused code, compiled once for all that are alike; whole: the forward pass and the loss as one
    graph, which may be faster and takes longer to compile. true is blocks, false is none."""
    cuda_graphs: bool = False
    """Record a micro-batch's forward and backward pass and play it back, which spares a GPU's host the launching of kernels one by one:
    for small models and small micro-batches, in one process (`slm.train.recording`)."""
    recompute: RecomputeSlot = NoRecompute()
    """What the backward pass computes again instead of keeping it."""
    kernels: Literal["auto", "triton", "torch", "compile"] = "auto"
    """What runs the ops of slm_kernels: the loss, norms, rotations, activations and others. auto: Triton on a GPU where it can and pays,
    else torch. triton, and compile (torch.compile, op by op), run or refuse, with the reason."""
    attention: Literal["auto", "sdpa", "matmul", "flex", "varlen", "flash"] = "auto"
    """What computes softmax attention (`slm.model.attention.backends`); the run says what it takes and why. A backend that is asked for
    by name and can't do a layer's attention is refused before the first step."""
    data_dir: str = "data"
    """Where token stores are kept."""
    workers: int | None = pydantic.Field(None, gt=0)
    """Processes that tokenise; None takes one per core, or a single one for little text."""
    tokenizer_backend: Literal["auto", "hf", "tiktoken", "gigatoken", "sentencepiece"] = "auto"
    """The library that encodes; each is checked against the tokenizer's own on the first documents of every file."""

    @pydantic.field_validator("compile", mode="before")
    @classmethod
    def _yes_is_blocks(cls, value: Any) -> Any:
        return {True: "blocks", False: "none"}[value] if isinstance(value, bool) else value

    @pydantic.model_validator(mode="after")
    def _recompute_fits(self) -> Self:
        if self.recompute.needs_compile and self.compile == "none":
            raise ConfigError(
                f"impl.recompute={self.recompute.part_name} is done by the compiler, and impl.compile is none. "
                "Set impl.compile=blocks, or choose impl.recompute=ops or full."
            )
        if self.compile == "whole" and self.parallel.sharded:
            raise ConfigError(
                f"impl.compile=whole can't look into blocks that impl.parallel={self.parallel.part_name} puts together one by one. Set "
                "impl.compile=blocks."
            )
        return self


class Wandb(Config):
    """The optional Weights & Biases mirror. It may fail without hurting the run."""

    mode: Literal["off", "offline", "online"] = "off"
    project: str = "slm"
    entity: str | None = None


class Log(Config):
    """What is written down, and when."""

    dir: str | None = None
    """The run directory; None is ``runs/<name>``."""
    branch_from: str | None = None
    """The checkpoint that a branch begins with; `slm train --branch-from` sets it."""
    every: int = pydantic.Field(10, gt=0)
    """Steps between records in metrics.jsonl."""
    eval_every: InSteps | None = Duration.parse("10%")
    """Between evaluations on held-out rows; None: none."""
    eval_rows: int = pydantic.Field(64, gt=0)
    """Held-out rows of an evaluation in the loop. The final one takes every held-out document."""
    checkpoint_every: Duration | None = Duration.parse("10%")
    """Between checkpoints (a last one is always written); None: only the last. It may be a time, such as '30 min'."""
    norms: bool = True
    """Norms of gradients and of weights by tensor class, with every record."""
    activations: bool = False
    """Root mean square and largest value of what every layer gives, with every record."""
    profile: int = pydantic.Field(0, ge=0)
    """Steps to profile, from the fourth on; the trace lies in ``profile/`` of the run directory."""
    checkpoint_async: bool = True
    """Write checkpoints in the background, from a copy in host memory; False: training waits, and no memory is needed for it."""
    keep: Retention = Retention()
    """Which checkpoints stay. A number is how many of the newest."""
    resume: Literal["latest", "latest-valid"] = "latest"
    """latest-valid: if the newest checkpoint is damaged, go on from the newest that is whole, and lose the steps between."""
    wandb: Wandb = Wandb()
    tensorboard: bool = False
    """Also write TensorBoard event files, into ``<run>/tensorboard``."""
