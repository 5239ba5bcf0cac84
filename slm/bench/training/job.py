"""What every trainer is given: a shape, rows on disk, a number of steps; and how it measures itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm.bench.line import at_the_line
from slm.cost.resident import peak_resident_bytes

if TYPE_CHECKING:
    import torch

    from slm.run import Run

LR, BETAS, EPS, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
WARMUP = 4
"""Steps in which the rate rises; it stays there afterwards."""
LOG_EVERY = 10
"""Steps between records, for those that don't look at every one."""
SAVE_EVERY = 100
"""Steps between checkpoints, where their cost is reported."""


@dataclass(frozen=True)
class Shape:
    """A decoder in the shape of a small Llama (RMSNorm, RoPE, SwiGLU, grouped queries, tied embeddings), and its batch."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    seq_len: int
    rows: int
    """Rows of a batch, which is one step."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step."""
        return self.seq_len * self.rows

    def params(self, vocab: int) -> int:
        """Stored parameters."""
        head = self.dim // self.heads
        attention = 2 * self.dim * head * (self.heads + self.kv_heads)
        return vocab * self.dim + self.layers * (attention + 3 * self.dim * self.hidden + 2 * self.dim) + self.dim


SHAPES = {
    "tiny": Shape(dim=64, layers=2, heads=2, kv_heads=1, hidden=128, seq_len=64, rows=4),
    "quick": Shape(dim=192, layers=6, heads=3, kv_heads=1, hidden=512, seq_len=512, rows=4),
    "10m": Shape(dim=384, layers=5, heads=6, kv_heads=2, hidden=1024, seq_len=512, rows=4),
    "30m": Shape(dim=512, layers=9, heads=8, kv_heads=4, hidden=1408, seq_len=1024, rows=4),
    "135m": Shape(dim=576, layers=30, heads=9, kv_heads=3, hidden=1536, seq_len=2048, rows=8),
}
"""quick is the model of `recipes/quickstart.yaml`; 135m that of SmolLM2, with this benchmark's small vocabulary."""


@dataclass(frozen=True)
class Job:
    """One trainer's work. ``root``: a folder with ``rows.bin`` and the token store; ``out``: a folder of its own."""

    root: str
    out: str
    shape: Shape
    vocab: int
    warm: int
    steps: int
    """Steps that are timed, behind ``warm`` that aren't."""
    threads: int
    device: str
    precision: str
    """fp32 or bf16 (autocast)."""
    impl: Mapping[str, Any] = field(default_factory=dict)
    """Of ours: what of ``impl`` isn't as by default."""

    @staticmethod
    def of(plain: Mapping[str, Any]) -> "Job":
        """From `plain`'s JSON."""
        return Job(**{**plain, "shape": Shape(**plain["shape"])})

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @property
    def total(self) -> int:
        """Steps taken."""
        return self.warm + self.steps

    @cached_property
    def rows(self) -> np.ndarray:
        """(total * rows, seq_len + 1), u16, from a map of the file: the inputs of every row and the target of its last token."""
        wide = self.shape.seq_len + 1
        return np.memmap(Path(self.root) / "rows.bin", dtype="<u2", mode="r").reshape(-1, wide)

    def rate(self, step: int) -> float:
        """The learning rate of a step, the same for all."""
        return LR * min(1.0, (step + 1) / WARMUP)

    def settled(self) -> "torch.device":
        """The device; torch's threads and seed are set."""
        import torch

        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        return torch.device(self.device)

    def run(self) -> "Run":
        """The same work as an experiment of ours, metrics on, everything else as by default."""
        from slm.run import Run

        s = self.shape
        attention = {"name": "gqa", "heads": s.heads, "kv_heads": s.kv_heads}
        return Run.model_validate(
            {
                "name": "bench",
                "model": {"dim": s.dim, "layers": s.layers, "attention": attention, "ffn": {"name": "swiglu", "hidden": s.hidden}},
                "tokenizer": {"name": "file", "path": f"{self.root}/tokenizer-{self.vocab}.json"},
                "data": {"store": f"{self.root}/store", "seq_len": s.seq_len, "heldout": 0},
                "train": {
                    "budget": {"steps": self.total},
                    "batch_tokens": s.batch_tokens,
                    "optim": {"name": "adamw", "lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY},
                    "schedule": {"name": "constant", "warmup": f"{WARMUP} steps"},
                    "clip": CLIP,
                    "precision": self.precision,
                },
                "impl": {"device": self.device, "threads": self.threads, "data_dir": f"{self.root}/data", **self.impl},
                "log": {"dir": self.out, "every": LOG_EVERY, "eval_every": None, "checkpoint_every": None},
            }
        )  # fmt: skip


class Stopwatch:
    """Told of the end of every step, it times those behind the first ``warm``: by the wall and by the processors."""

    def __init__(self, job: Job) -> None:
        self.job, self.step, self.began, self.wall, self.cpu = job, 0, 0.0, 0.0, 0.0
        self.losses: list[float] = []

    def lap(self) -> None:
        """A step ended."""
        self.step += 1
        if self.step in (self.job.warm, self.job.total):
            if self.job.device.startswith("cuda"):
                import torch

                torch.cuda.synchronize()
            if self.step == self.job.warm:
                at_the_line()
                self.began, self.cpu = time.perf_counter(), time.process_time()
            else:
                self.wall, self.cpu = time.perf_counter() - self.began, time.process_time() - self.cpu

    def _memory(self) -> int:
        """Bytes of the device's memory at the highest moment; of the process's on a CPU."""
        if self.job.device.startswith("cuda"):
            import torch

            return torch.cuda.max_memory_allocated()
        return peak_resident_bytes()

    def report(self, params: int, losses: list[float]) -> dict[str, Any]:
        """What a job says. ``losses``: of the records, in order."""
        if self.step != self.job.total:
            raise RuntimeError(f"{self.step} of {self.job.total} steps were taken")
        return {
            "began": self.began,
            "wall": self.wall,
            "cpu": self.cpu,
            "amount": self.job.steps * self.job.shape.batch_tokens,
            "params": params,
            "losses": losses,
            "memory": self._memory(),
        }
