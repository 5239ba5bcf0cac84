"""What changes while a model trains, and how it goes into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from slm.train.optim import NamedParameter
from slm.train.optim.steps import init_state
from slm.train.parallel import World

if TYPE_CHECKING:
    from slm.run import Run

SUMS = ("nll", "targets", "bytes", "attended")
"""Summed on the device since the last log record: nats, targets, their bytes, FLOPs spent on attended keys."""


@dataclass
class TrainState:
    """Model, optimisers, data position and counters of a run."""

    model: Decoder
    optimizers: list[torch.optim.Optimizer]
    loader: Loader
    sums: Tensor
    """Shape (len(SUMS),), of this process, since the last record."""
    skipped: Tensor
    """Steps whose gradient was not finite, a device scalar."""
    step: int = 0
    seconds: float = 0.0
    """Time spent in steps, over all sessions."""
    heldout: tuple[int, float] | None = None
    """(step, bits per byte) of the last evaluation."""


def build(run: "Run", corpus: Corpus, loader: Loader, world: World) -> TrainState:
    """A fresh state: initial weights from the seed, optimisers with every parameter in exactly one group."""
    model = Decoder(run.model).init_weights(run.train.seed).to(world.device)
    model.attention_backend = run.impl.attention
    parameters = named_parameters(model)
    optimizers = run.train.optim.build(parameters)
    held = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    if sorted(held) != sorted(id(p.tensor) for p in parameters):
        raise ValueError(f"optimiser {run.train.optim.part_name!r} doesn't hold every parameter exactly once")
    wide = torch.float32 if world.device.type == "mps" else torch.float64
    sums = torch.zeros(len(SUMS), dtype=wide, device=world.device)
    return TrainState(model, optimizers, loader, sums, torch.zeros((), device=world.device))


def named_parameters(model: Decoder) -> list[NamedParameter]:
    """Every parameter with its tensor class and the factors that the model's parametrisation puts on its rates."""
    config, found = model.config, list[NamedParameter]()
    for name, tensor_class, tensor in classify(model):
        hidden = describe_tensor(config, name, tensor_class, tensor.shape).hidden
        found.append(
            NamedParameter(name, tensor_class, tensor, config.parametrization.rates(config, tensor_class, hidden))
        )
    return found


def save(state: TrainState, run: "Run", corpus: Corpus, saver: checkpoint.Saver, world: World) -> None:
    """Begin to write a checkpoint of the state; every process calls it."""
    counters: dict[str, Any] = {
        "step": state.step,
        "tokens": state.step * run.train.batch_tokens,
        "loader": state.loader.state(),
        "sums": world.sum(state.sums.clone()).tolist(),
        "skipped": int(state.skipped),
        "seconds": state.seconds,
        "identity": run.identity,
    }
    if state.heldout is not None and state.heldout[0] == state.step:
        counters["heldout_bpb"] = state.heldout[1]
    tensors: dict[str, Mapping[str, Tensor]] = {
        "model": dict(state.model.named_parameters()),
        "optimizer": _optimizer_tensors(state),
    }
    saver.save(state.step, tensors, counters, dump_yaml(run.model_dump(mode="json"), run.notes), corpus.tokenizer_bytes)


def resume(
    state: TrainState,
    run_dir: Path,
    world: World,
    *,
    consent: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Path | None:
    """Load the newest checkpoint into the state and return it; None if there is none.

    Every process calls it and reads its own parts. ``consent``: an older one may be used if the newest is damaged; that is said.
    """
    found = _newest(run_dir, world, consent, say)
    if found is None:
        return None
    checkpoint.read_into(found, "model", dict(state.model.named_parameters()))
    checkpoint.read_into(found, "optimizer", _places_for(state, checkpoint.specs(found, "optimizer"), found))
    saved = checkpoint.read_state(found)
    state.loader.restore(saved["loader"])
    state.step, state.seconds = saved["step"], saved["seconds"]
    state.skipped.fill_(saved["skipped"])
    if world.main:  # sums are of all processes; one of them carries on with them
        state.sums.copy_(torch.tensor(saved["sums"], dtype=state.sums.dtype))
    return found


def _newest(run_dir: Path, world: World, consent: bool, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from, chosen and verified by the main process; if it finds none whole, all leave."""
    problem: RunError | None = None
    if world.main:
        try:
            checkpoint.newest(run_dir, consent, say)
        except RunError as error:
            problem = error
    if world.any(problem is not None):
        raise problem or RunError(f"{run_dir}: its newest checkpoint is damaged; the main process says how.")
    return checkpoint.latest(run_dir)


def _places_for(state: TrainState, specs: dict[str, checkpoint.Spec], found: Path) -> dict[str, Tensor]:
    """The optimiser state that a checkpoint's will be read into, made as before the first step.

    A parameter without any state in the checkpoint had no step, and keeps its fresh one. What an optimiser keeps for a while only (a
    second set of weights) is of the parameter's shape.

    Raises:
        RunError: the checkpoint is another optimiser's.
    """
    init_state(state.optimizers)
    parameters = dict(state.model.named_parameters())
    owner = {p: o for o in state.optimizers for g in o.param_groups for p in g["params"]}
    for path, spec in specs.items():
        name, _, key = path.rpartition("/")
        p = parameters.get(name)
        if p is not None and key not in owner[p].state[p] and spec.shape == tuple(p.shape):
            owner[p].state[p][key] = torch.empty_like(p.detach(), dtype=spec.dtype)
    mine = _optimizer_tensors(state)
    stepped = {path.rpartition("/")[0] for path in specs}
    odd = sorted(specs.keys() ^ {path for path in mine if path.rpartition("/")[0] in stepped})
    if odd:
        raise RunError(
            f"{found}: its optimiser state isn't that of this run's optimisers; first difference: {odd[0]!r}."
        )
    return {path: mine[path] for path in specs}


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    """Optimiser state as "<parameter>/<name>" tensors."""
    names: dict[Tensor, str] = {p: name for name, p in state.model.named_parameters()}
    return {
        f"{names[p]}/{key}": value
        for optimizer in state.optimizers
        for p, values in optimizer.state.items()
        for key, value in values.items()
    }
