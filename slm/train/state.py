"""What changes while a model trains, and how it goes into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slm import checkpoint
from slm.config.errors import RunError
from slm.config.yaml import dump_yaml
from slm.data.corpus import Corpus
from slm.data.loader import Loader
from slm.model.classes import classify
from slm.model.decoder import Decoder
from slm.model.init import describe_tensor
from slm.train import compiling, float8, recording
from slm.train.averaging import Ema
from slm.train.course import Course
from slm.train.distill.loss import loss_module
from slm.train.given import load_given
from slm.train.objective import LossModule
from slm.train.optim import NamedParameter
from slm.train.optim.steps import evaluation_weights, final_weights, init_state
from slm.train.optim.steps.shards import whole
from slm.train.parallel import Spread
from slm.train.parallel.world import World
from slm.train.rundir import run_dir_of
from slm.train.spikes import SpikeGuard

if TYPE_CHECKING:
    from slm.run import Run

SUMS = ("nll", "targets", "bytes", "attended", "kl")
"""Summed on the device since the last log record: nats, targets, their bytes, FLOPs spent on attended keys, nats of divergence
from a teacher."""


@dataclass
class TrainState:
    """Model, optimisers, data position and counters of a run."""

    model: Decoder
    optimizers: list[torch.optim.Optimizer]
    loader: Loader
    objective: LossModule
    """The model with its loss: it makes the inputs,"""
    spread: Spread
    """and this is what is called with them: the same, compiled and shared by the processes."""
    guard: SpikeGuard
    sums: Tensor
    """Shape (len(SUMS),), of this process, since the last record."""
    ema: Ema | None = None
    heldout: tuple[int, float] | None = None
    """(step, bits per byte) of the last evaluation."""
    step: int = 0
    seconds: float = 0.0
    """Time spent in steps, over all sessions."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the averaged weights in the model, where there are such."""
        with self.ema.swapped_in() if self.ema is not None else nullcontext():
            yield

    def whole_model(self, main: bool) -> Decoder:
        """The model to be used, in the ``main`` process alone: averaged weights where there are such, put together where they are
        sharded. All processes call it; what the others get is of no use to them.
        """
        final_weights(self.optimizers)
        sharded = any(hasattr(p, "full_tensor") for p in self.model.parameters())
        if not sharded and self.ema is None:
            return self.model
        model = Decoder(self.model.config) if main else None
        own = dict(model.named_parameters()) if model is not None else {}
        with self.averaged(), torch.no_grad():
            for (
                name,
                p,
            ) in self.model.named_parameters():  # one tensor at a time: together they may be more than a device holds
                tensor = whole(p.detach())
                if main:
                    own[name].copy_(tensor)
        if model is None:
            return self.model
        model.attention_backend = self.model.attention_backend
        return model.to(next(self.model.parameters()).device)


def build(run: "Run", corpus: Corpus, loader: Loader, course: Course, world: World) -> TrainState:
    """A fresh state: initial weights from the seed, spread over the processes; optimisers with every parameter in exactly one group."""
    model = Decoder(run.model).init_weights(run.train.seed)
    if run.train.init_from is not None and run.train.branch is None and checkpoint.latest(run_dir_of(run)) is None:
        load_given(
            model, run.train.init_from, run.train.init_from_hash, corpus.tokenizer_bytes
        )  # else the weights come from a checkpoint
    model = model.to(world.device)
    model.attention_backend, model.recorded = run.impl.attention, run.impl.cuda_graphs
    if run.impl.cuda_graphs:
        recording.check_place(world)
        recording.check_model(model)
    if run.train.precision == "fp8":
        float8.apply(model)
    run.impl.recompute.apply(model)
    objective = loss_module(run, model, corpus, loader.plan, course.total_rows)
    spread = run.impl.parallel.spread(compiling.apply(objective, model, run.impl.compile), model, world)
    parameters = named_parameters(model)
    optimizers = run.train.optim.build(parameters)
    held = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    if sorted(held) != sorted(id(p.tensor) for p in parameters):
        raise ValueError(f"optimiser {run.train.optim.part_name!r} doesn't hold every parameter exactly once")
    wide = torch.float32 if world.device.type == "mps" else torch.float64
    return TrainState(
        model,
        optimizers,
        loader,
        objective,
        spread,
        SpikeGuard(run.train.spikes, world.device),
        torch.zeros(len(SUMS), dtype=wide, device=world.device),
        _ema(run, model, course),
    )


def _ema(run: "Run", model: Decoder, course: Course) -> Ema | None:
    if run.train.ema is None:
        return None
    decay = run.train.ema.per_step(total=course.total, batch_tokens=course.batch_tokens, params=course.params)
    return Ema(dict(model.named_parameters()), decay)


def named_parameters(model: Decoder) -> list[NamedParameter]:
    """Every parameter with its tensor class and the factors that the model's parametrisation puts on its rates."""
    config, found = model.config, list[NamedParameter]()
    for name, tensor_class, tensor in classify(model):
        hidden = describe_tensor(config, name, tensor_class, tensor.shape).hidden
        found.append(
            NamedParameter(name, tensor_class, tensor, config.parametrization.rates(config, tensor_class, hidden))
        )
    return found


def tensors_of(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """All tensors of a checkpoint, by group and name. Writing into them is how a checkpoint is read back."""
    names: dict[Tensor, str] = {p: name for name, p in state.model.named_parameters()}
    optimizer = {
        f"{names[p]}/{key}": value
        for optimizer in state.optimizers
        for p, values in optimizer.state.items()
        for key, value in values.items()
    }
    groups: dict[str, dict[str, Tensor]] = {
        "model": {name: p.detach() for p, name in names.items()},
        "optimizer": optimizer,
    }
    groups["guard"] = state.guard.state()
    if state.ema is not None:
        groups["ema"] = state.ema.state()
    return groups


def save(state: TrainState, run: "Run", corpus: Corpus, saver: checkpoint.Saver, tokens: int, world: World) -> None:
    """Begin to write a checkpoint of the state, after ``tokens``; every process calls it. What it calls the model's weights are those
    to be used, but for averages, which have a group of their own."""
    counters: dict[str, Any] = {
        "step": state.step,
        "tokens": tokens,
        "loader": state.loader.state(),
        "sums": world.sum(state.sums.clone()).tolist(),
        "seconds": state.seconds,
        "identity": run.identity,
        "skipped_in_a_row": state.guard.read()["in_a_row"],
    }
    if state.heldout is not None and state.heldout[0] == state.step:
        counters["heldout_bpb"] = state.heldout[1]
    config = dump_yaml(run.model_dump(mode="json"), run.notes)
    with evaluation_weights(state.optimizers):
        saver.save(state.step, tensors_of(state), counters, config, corpus.tokenizer_bytes)


def newest(run_dir: Path, world: World, *, consent: bool, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from, chosen and verified by the main process; if it finds none whole, all leave.

    ``consent``: an older one may be used if the newest is damaged; that is said.
    """
    problem: RunError | None = None
    if world.main:
        try:
            checkpoint.newest(run_dir, consent, say)
        except RunError as error:
            problem = error
    if world.any(problem is not None):
        raise problem or RunError(f"{run_dir}: its newest checkpoint is damaged; the main process says how.")
    return checkpoint.latest(run_dir)


def resume(state: TrainState, found: Path, world: World, *, rows_before: Callable[[int], int] | None = None) -> None:
    """Load a checkpoint into the state: every process reads its own parts. ``rows_before``: a branch may go on with other data, at the
    row that this gives for its step.

    Raises:
        RunError: the checkpoint is damaged, or another model's or optimiser's.
    """
    init_state(state.optimizers)
    with evaluation_weights(state.optimizers):  # as it was saved; afterwards the weights that are trained are there
        for group, tensors in tensors_of(state).items():
            specs = checkpoint.specs(found, group)
            checkpoint.read_into(found, group, READ.get(group, _all)(tensors, specs, found, group))
    saved = checkpoint.read_state(found)
    state.step, state.seconds, place = saved["step"], saved["seconds"], saved["loader"]
    if rows_before is not None and place["plan"] != state.loader.plan.hash:
        place = place | {"next_row": rows_before(state.step)}
    state.loader.restore(place, allow_data_change=rows_before is not None)
    if world.main:  # sums are of all processes; one of them carries on with them
        sums = torch.tensor(saved["sums"], dtype=state.sums.dtype)
        state.sums[: len(sums)].copy_(sums)  # a checkpoint from before there were teachers has no sum for one


Tensors = dict[str, Tensor]
Specs = dict[str, checkpoint.Spec]


def _all(tensors: Tensors, specs: Specs, found: Path, group: str) -> Tensors:
    """All of a group, which has to be there."""
    if odd := sorted(specs.keys() ^ tensors.keys()):
        raise RunError(
            f"{found}: what it has under {group!r} isn't what this run needs; first difference: {odd[0]!r}. It was written by a run with "
            f"other settings (train.optim, train.ema, ...): start another run, or leave them as they were."
        )
    return tensors


def _stepped(tensors: Tensors, specs: Specs, found: Path, group: str) -> Tensors:
    """Optimiser state: a parameter without any in the checkpoint had no step, and keeps its fresh one."""
    stepped = {path.rpartition("/")[0] for path in specs}
    return _all({path: t for path, t in tensors.items() if path.rpartition("/")[0] in stepped}, specs, found, group)


def _fitting(tensors: Tensors, specs: Specs, found: Path, group: str) -> Tensors:
    """The guard's: with another window than then, it starts to look again, and only the counts go on."""
    same = "norms" in specs and specs["norms"].shape == tuple(tensors["norms"].shape)
    return _all(tensors, specs, found, group) if same else {"counts": tensors["counts"]} if "counts" in specs else {}


READ = {"optimizer": _stepped, "guard": _fitting}
"""What of a group is read, where it isn't all."""
