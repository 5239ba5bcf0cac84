"""What a training step holds in memory, found by running it on tensors without contents.

A formula for the activations of a transformer holds for the transformer that it was written for. Here the model itself, whatever
its parts, runs forward and backward on fake tensors (shapes and types, no memory), while every storage that appears is counted when
it is made and taken off when nothing refers to it any more, as an allocator does. So what autograd keeps, what autocast casts, which
tensors share a storage, and when a gradient takes an activation's place, all come from the code that will train. What no tensor
shows is added by rule: the workspaces of the loss (`Decoder.loss_workspace`) and of the divergence from a teacher, inside of operators.

The backends are a CPU's, since a build of torch without CUDA has no other, but the fused attention of both keeps the same (queries,
keys, values, output and a log-sum per row). ``torch.compile`` saves less than what is counted here.

Tracing takes some 30 microseconds for each of the thousands of operations. A model of equal blocks is traced at two small depths
and extended along a straight line: each further block adds the same. Which moment holds most can depend on the depth (activations go on the
way back while gradients come), so the line is drawn for the two ends of the way back apart, and the higher one counts.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.model.precision import autocast, product_dtype
from slm.train import float8
from slm.train.distill.config import Distill
from slm.train.distill.loss import DistillLoss
from slm.train.distill.stand_in import Told
from slm.train.objective import LossModule
from slm.train.optim.base import OptimPart
from slm.train.optim.steps.guarded import evaluation_weights, init_state
from slm.train.parallel.modes import units_of
from slm.train.recompute import NoRecompute, RecomputePart
from slm.train.state import named_parameters

LEAST_DEPTH = 2
"""Blocks of the shallower of the two traces of a model of equal ones."""
LOSS, DIVERGENCE = "slm_kernels::linear_cross_entropy", "slm_kernels::linear_kl"


@dataclass(frozen=True)
class Footprint:
    """Bytes at the moment of forward and backward when most is held, beside weights, optimiser state and gradients of earlier
    micro-batches."""

    activations: int
    """Saved for the way back, and what is being worked on."""
    gradients: int
    """Of parameters, as far as they are there at that moment."""

    def along(self, other: "Footprint", steps: float) -> "Footprint":
        """This, and ``steps`` times what ``other`` has more."""
        a, g = other.activations - self.activations, other.gradients - self.gradients
        return Footprint(round(self.activations + steps * a), max(0, round(self.gradients + steps * g)))


def of_forward_backward(
    model: Model, *, rows: int, seq_len: int, precision: str, device: str, accumulate: bool, attention: str = "auto",
    recompute: RecomputePart | None = None, bf16_weights: bool = False, distill: Distill | None = None, teacher: Model | None = None,
) -> Footprint:  # fmt: skip
    """The footprint of one micro-batch of ``rows`` x ``seq_len`` tokens.

    Args:
        precision: as ``train.precision``, settled.
        device: type of the device it will run on.
        accumulate: gradients of an earlier micro-batch are there from the beginning; they are the caller's to count.
        attention: backend, as ``impl.attention``.
        recompute: which activations are computed again on the way back; None: none. What the compiler chooses isn't seen here.
        bf16_weights: weights are bf16 where they are used, so that nothing has to be cast.
        distill: learn from a teacher, too: one of the shape ``teacher``, or a cache. What it says is the caller's to count.
    """

    def trace(config: Model) -> list[Footprint]:
        backend = _backend(model, attention, device)
        return _trace(
            config, rows, seq_len, precision, device, accumulate, backend, recompute or NoRecompute(), bf16_weights,
            distill, teacher,
        )  # fmt: skip

    period = recompute.period if recompute is not None else 1
    first = -(-LEAST_DEPTH // period) * period
    second = first + period
    if model.layers <= second or not _equal_blocks(model):
        return _higher(trace(model))
    shallow, deeper = (trace(model.with_(layers=n)) for n in (first, second))
    further = (model.layers - first) / (second - first)
    return _higher([a.along(b, further) for a, b in zip(shallow, deeper, strict=True)])


class OfOptimizer(NamedTuple):
    """Bytes of an optimiser."""

    state: int
    saved: int
    """Of its state in a checkpoint, which has both sets of weights where an optimiser trains other ones than are used."""
    workspace: int
    """Most that a step needs for a moment, beside weights, gradients and state."""


def of_step(model: Model, optim: OptimPart) -> OfOptimizer:
    """What an optimiser of a model holds."""
    with FakeTensorMode():
        decoder = Decoder(model)
        optimizers = optim.build(named_parameters(decoder))
        init_state(optimizers)
        for p in decoder.parameters():
            p.grad = torch.empty_like(p)
        bad = torch.zeros(())
        state = _state_of(optimizers)
        with evaluation_weights(optimizers):
            saved = _bytes(_state_of(optimizers))
        there = [*decoder.parameters(), *(p.grad for p in decoder.parameters() if p.grad is not None), *state]
        with _Counter(there) as counter:
            for optimizer in optimizers:
                optimizer.found_inf, optimizer.grad_scale = bad, None  # type: ignore[attr-defined]
                optimizer.step()
        return OfOptimizer(_bytes(state), saved, _higher(counter.peaks).activations)


def _state_of(optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    return [t for o in optimizers for values in o.state.values() for t in values.values()]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.itemsize for t in tensors)


def of_units(model: Model) -> tuple[int, list[int]]:
    """(parameters outside of what a sharded model puts together at a time, parameters of each such unit)."""
    with FakeTensorMode():
        decoder = Decoder(model)
        taken: set[int] = set()
        units = []
        for unit in units_of(decoder):  # inner ones first: what they hold isn't their block's
            own = [p for p in unit.parameters() if id(p) not in taken]
            taken |= {id(p) for p in own}
            units.append(sum(p.numel() for p in own))
        return sum(p.numel() for p in decoder.parameters() if id(p) not in taken), units


def _trace(
    model: Model,
    rows: int,
    seq_len: int,
    precision: str,
    device: str,
    accumulate: bool,
    backend: str,
    recompute: RecomputePart,
    bf16_weights: bool = False,
    distill: Distill | None = None,
    teacher: Model | None = None,
) -> list[Footprint]:
    with FakeTensorMode():
        decoder = _built(model, torch.bfloat16 if bf16_weights else torch.float32)
        decoder.attention_backend = backend
        if precision == "fp8":
            float8.apply(decoder)
        if not recompute.needs_compile:
            recompute.apply(decoder)
        if accumulate:
            for p in decoder.parameters():
                p.grad = torch.empty_like(p)
        tokens_BT = torch.zeros(rows, seq_len, dtype=torch.int64)
        positions_BT, docs_BT = torch.zeros_like(tokens_BT), torch.zeros_like(tokens_BT)
        objective, said = LossModule(decoder), list[Tensor]()
        workspaces = {LOSS: decoder.loss_workspace(rows * seq_len, product_dtype(precision), device)}
        if distill is not None:
            told = Told(distill, teacher, rows * seq_len)
            objective, said = DistillLoss(decoder, distill, told), told.tensors
            workspaces[DIVERGENCE] = told.workspace(decoder, product_dtype(precision), device)
        there = [*decoder.parameters(), *(p.grad for p in decoder.parameters() if p.grad is not None), *said]
        with _Counter(there, workspaces) as counter:
            if not accumulate:
                counter.tell_gradients(decoder)
            with autocast(torch.device("cpu"), precision):
                loss, _, _ = objective(tokens_BT, tokens_BT, positions_BT, docs_BT)
            (loss * 0.5).backward()
        return counter.peaks


def _built(model: Model, dtype: torch.dtype) -> Decoder:
    """With weights of ``dtype``; casting them afterwards is what fake tensors can't."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return Decoder(model)
    finally:
        torch.set_default_dtype(before)


class _Counter(TorchDispatchMode):
    """Counts the storages that are alive, but for those that were there before."""

    def __init__(self, there: list[Tensor], workspaces: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in there}
        self.workspaces = workspaces or {}
        """Bytes that operators need for a moment and show nobody, by their names."""
        self.bytes, self.gradient_bytes, self.all_gradients = 0, 0, sum(t.untyped_storage().nbytes() for t in there)
        self.peaks = [Footprint(0, 0), Footprint(0, 0)]
        """Before and after half of the gradients are there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.5  # the host looks at a value, which isn't there: the loss's factor, anything but 1
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        if func.name() in self.workspaces:
            self._note(self.workspaces[func.name()])
        return out

    def tell_gradients(self, decoder: Decoder) -> None:
        """From now on, tell the gradients of its parameters apart from other tensors."""
        for p in decoder.parameters():
            p.register_post_accumulate_grad_hook(self._is_gradient)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.bytes += storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes()).atexit = False
            self._note(0)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size

    def _is_gradient(self, p: Tensor) -> None:
        if p.grad is not None:
            self.gradient_bytes += p.grad.untyped_storage().nbytes()

    def _note(self, extra: int) -> None:
        half = int(2 * self.gradient_bytes > self.all_gradients)
        if self.bytes + extra > sum(vars(self.peaks[half]).values()):
            self.peaks[half] = Footprint(self.bytes + extra - self.gradient_bytes, self.gradient_bytes)


def _higher(peaks: list[Footprint]) -> Footprint:
    return max(peaks, key=lambda peak: peak.activations + peak.gradients)


def _equal_blocks(model: Model) -> bool:
    """Whether every layer is a block of its own made of the same parts, so that a model of fewer layers is a shorter one."""
    first = model.contexts[0]
    return len(model.contexts) == model.layers == len({c.block for c in model.contexts}) and all(
        (c.attention, c.ffn, c.position, c.shares_ffn) == (first.attention, first.ffn, first.position, False)
        for c in model.contexts
    ) and model.layout.part_name == "uniform"  # fmt: skip


def _backend(model: Model, wanted: str, device: str) -> str:
    """The backend to trace in place of ``wanted``, on a CPU: sdpa keeps what all fused ones keep. With a cap or sinks it is matmul, which
    counts scores that Flex wouldn't hold."""
    if wanted in ("sdpa", "matmul") or device == "cpu":
        return wanted
    by_hand = any(getattr(c.attention, name, None) for c in model.contexts for name in ("softcap", "sinks"))
    return "matmul" if by_hand else "sdpa"
