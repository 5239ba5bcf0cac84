"""What a record in metrics.jsonl says: means since the last one, speed, memory, norms."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slm.cost.device import peak_flops
from slm.cost.resident import peak_resident_bytes
from slm.data.loader import Batch
from slm.eval.rows import bits_per_byte
from slm.model.classes import classify
from slm.train.optim.steps.shards import local, split_of
from slm.train.parallel.world import World

if TYPE_CHECKING:
    from slm.cost.cost import ModelCost
    from slm.run import Run
    from slm.train.state import TrainState


OF_THE_MACHINE = ("seconds", "tokens_per_s", "mfu_causal", "mfu_palm", "data_stall", "memory_bytes")
"""What a record says of the machine. All else follows from the experiment, and is the same after every resume."""


class Meter:
    """Counts on the device and by the clock between records, and turns that into a record.

    Call `due` with whether the step at hand will be recorded: what costs something is measured then only.
    """

    def __init__(
        self, run: "Run", costs: "ModelCost", world: World, token_bytes_V: Tensor, state: "TrainState"
    ) -> None:
        self.run, self.world, self.state, self.token_bytes_V = run, world, state, token_bytes_V
        self.cost, self.palm = costs.total, costs.flops_per_token["train_palm"]
        self.train_only = self.cost.train_only_flops(run.data.seq_len)
        cuda = world.device.type == "cuda"
        self.peak = peak_flops(torch.cuda.get_device_name(world.device) if cuda else None)
        self.clock = time.perf_counter()
        self.since_record = self.stalled = 0.0
        self.tokens = 0
        self._due = False
        self._grad_norms: dict[str, Tensor] = {}
        self._activations: dict[int, Tensor] = {}

    # ---- within a step ------------------------------------------------------------------------------

    def due(self, yes: bool) -> None:
        """Whether the step that begins now will be recorded."""
        self._due = yes

    def count(self, batch: Batch, nll: Tensor, kl: Tensor) -> None:
        """Add a micro-batch of this process to the sums."""
        size = self.token_bytes_V[batch.targets_BT.clamp(min=0)].where(batch.targets_BT >= 0, 0).sum()
        wide = self.state.sums.dtype
        counted = torch.stack([(batch.targets_BT >= 0).sum(), size, self._attended(batch)]).to(wide)
        sums = torch.cat(
            [nll.detach()[None].to(wide), counted.to(self.world.device, non_blocking=True), kl.detach()[None].to(wide)]
        )
        self.state.sums += sums.where(
            torch.isfinite(nll.detach()), 0.0
        )  # what is lost doesn't count; its step is skipped

    def _attended(self, batch: Batch) -> Tensor:
        """FLOPs that the batch's counted tokens spend on the keys they attend to: causal, within windows and documents."""
        keys = (batch.positions_BT + 1).where(batch.targets_BT >= 0, 0)
        seen = [f * (keys if w is None else keys.clamp(max=w)).sum() for w, f in self.cost.flops_per_key.items()]
        return sum(seen, torch.zeros(())).to(torch.float64)

    def gradients(self, state: "TrainState") -> None:
        """Look at the gradients of a step that will be recorded, before the optimiser spends them."""
        if self._due and self.run.log.norms:
            found = [(c, p.grad) for _, c, p in classify(state.model) if p.grad is not None]
            self._grad_norms = squares_by_class(found)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        began = time.perf_counter()
        yield
        self.stalled += time.perf_counter() - began

    def tick(self) -> None:
        """Book the time since the last call as training time."""
        now = time.perf_counter()
        self.state.seconds += now - self.clock
        self.since_record += now - self.clock
        self.clock = now

    def begin(self, tokens: int) -> None:
        """Training begins, or goes on, after so many tokens."""
        self.tokens, self.since_record, self.stalled = tokens, 0.0, 0.0
        self.clock = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the last record, or the beginning."""
        return self.since_record + time.perf_counter() - self.clock

    @property
    def seconds(self) -> float:
        """Training time over all sessions, up to now."""
        return self.state.seconds + time.perf_counter() - self.clock

    def skip(self) -> None:
        """The time since the last call was no training time."""
        self.clock = time.perf_counter()

    # ---- a record -----------------------------------------------------------------------------------

    def record(self, *, tokens: int, params: int, norm: Tensor) -> dict[str, Any]:
        """The record of the step that was just taken, on ``tokens`` so far. All processes call it; it waits for the device."""
        state = self.state
        nll, targets, size, attended, kl = self.world.sum(state.sums.clone()).tolist()
        state.sums.zero_()
        self.tick()
        speed, stalled = (tokens - self.tokens) / self.since_record, self.stalled / self.since_record
        self.tokens, self.since_record, self.stalled = tokens, 0.0, 0.0
        counts = state.guard.read()
        return {
            "kind": "train",
            "step": state.step,
            "tokens": tokens,
            "tokens_per_param": tokens / params,
            "loss": nll / targets if targets else None,
            "bpb": bits_per_byte(nll, size) if size else None,
            **({"kl": kl / targets if targets else None} if self.run.train.distill is not None else {}),
            "lr": state.optimizers[0].param_groups[0]["lr"],
            "grad_norm": float(norm),
            "tokens_per_s": speed,
            **self._mfu(speed, attended / max(targets, 1)),
            "data_stall": stalled,
            "memory_bytes": self._memory(),
            "skipped": counts["not_finite"] + counts["outliers"],
            "skipped_in_a_row": counts["in_a_row"],
            "seconds": state.seconds,
            **self._norms(),
            **self._layers(),
        }

    def _mfu(self, tokens_per_s: float, attended: float) -> dict[str, float | None]:
        """Share of the devices' peak: with the FLOPs of what was ``attended`` per token (causal, within windows and
        documents), and PaLM's way."""
        if self.peak is None:
            return {"mfu_causal": None, "mfu_palm": None}
        peak = self.peak * self.world.size
        return {
            "mfu_causal": 3 * (self.cost.flops + attended + self.train_only) * tokens_per_s / peak,
            "mfu_palm": self.palm * tokens_per_s / peak,
        }

    def _memory(self) -> int:
        """The most that this process has had: of the device's memory on a GPU, of the machine's else."""
        if self.world.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.world.device)
        return peak_resident_bytes()

    def _norms(self) -> dict[str, dict[str, float]]:
        if not self.run.log.norms:
            return {}
        weights = squares_by_class(((c, p) for _, c, p in classify(self.state.model)))
        return {"grad_norms": _roots(self._grad_norms), "weight_norms": _roots(weights)}

    # ---- activations --------------------------------------------------------------------------------

    @property
    def watching(self) -> bool:
        """Whether the step at hand is one in which `looking` looks."""
        return self._due and self.run.log.activations

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Around the step: what every layer gives is looked at, if it will be recorded and was asked for."""
        if not self.watching:
            yield
            return
        self._activations, hooks = {}, []

        def look(_: Any, __: Any, out: Any) -> None:
            if torch.is_grad_enabled():
                x = (out[0] if isinstance(out, tuple) else out).detach().float()
                self._activations[len(self._activations)] = torch.stack([x.square().mean().sqrt(), x.abs().max()])

        try:
            hooks = [block.register_forward_hook(look) for block in self.state.model.blocks]
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _layers(self) -> dict[str, list[float]]:
        if not self._activations:
            return {}
        layers = len(self.state.model.config.contexts)
        found = torch.stack(
            list(self._activations.values())[:layers]
        ).tolist()  # of the first micro-batch, this process's
        self._activations = {}
        return {"activation_rms": [rms for rms, _ in found], "activation_max": [most for _, most in found]}


def squares_by_class(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Sums of squares by tensor class, device scalars, of whole tensors where processes have parts of them."""
    parts: dict[tuple[str, Any], list[Tensor]] = {}
    for tensor_class, t in tensors:
        split = split_of(t)
        parts.setdefault((tensor_class, split and split.group), []).append(local(t.detach()))
    sums: dict[str, Tensor] = {}
    for (tensor_class, group), found in parts.items():
        square = torch.stack(torch._foreach_norm(found)).square().sum()
        if group is not None:
            torch.distributed.all_reduce(square, group=group)
        sums[tensor_class] = sums.get(tensor_class, torch.zeros_like(square)) + square
    return sums


def _roots(squares: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.sqrt()) for name, value in sorted(squares.items())}
