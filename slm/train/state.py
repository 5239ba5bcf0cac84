"""What changes while a model trains, and how it goes into a checkpoint and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slm import checkpoint
from slm.checkpoint.restore import load_weights
from slm.config.yaml import dump_yaml
from slm.data.corpus import Corpus
from slm.data.loader import Loader
from slm.model.classes import classify
from slm.model.decoder import Decoder
from slm.model.init import describe_tensor
from slm.train.given import load_given
from slm.train.optim import NamedParameter
from slm.train.parallel import World
from slm.train.rundir import run_dir_of

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
    sums: Tensor
    """Shape (len(SUMS),), of this process, since the last record."""
    skipped: Tensor
    """Steps whose gradient was not finite, a device scalar."""
    step: int = 0
    seconds: float = 0.0
    """Time spent in steps, over all sessions."""


def build(run: "Run", corpus: Corpus, loader: Loader, world: World) -> TrainState:
    """A fresh state: initial weights from the seed, optimisers with every parameter in exactly one group."""
    model = Decoder(run.model).init_weights(run.train.seed)
    if run.train.init_from is not None and checkpoint.latest(run_dir_of(run)) is None:  # a resumed run has its own
        load_given(model, run.train.init_from, run.train.init_from_hash)
    model = model.to(world.device)
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


def save(state: TrainState, run: "Run", corpus: Corpus, run_dir: Path, world: World) -> None:
    """Write a checkpoint of the state, on the main process."""
    sums = world.sum(state.sums.clone())
    if world.main:
        counters: dict[str, Any] = {
            "step": state.step,
            "tokens": state.step * run.train.batch_tokens,
            "loader": state.loader.state(),
            "sums": sums.tolist(),
            "skipped": int(state.skipped),
            "seconds": state.seconds,
            "identity": run.identity,
        }
        checkpoint.save(
            run_dir,
            state.step,
            model=dict(state.model.named_parameters()),
            optimizer=_optimizer_tensors(state),
            state=counters,
            config=dump_yaml(run.model_dump(mode="json"), run.notes),
            tokenizer=corpus.tokenizer_bytes,
            keep=run.log.keep,
        )


def resume(state: TrainState, run_dir: Path, world: World) -> bool:
    """Load the newest checkpoint into the state. Returns whether there was one."""
    found = checkpoint.latest(run_dir)
    if found is None:
        return False
    saved = checkpoint.load(found)
    load_weights(state.model, saved.model, found)
    _restore_optimizers(state, saved.optimizer)
    state.loader.restore(saved.state["loader"])
    state.step, state.seconds = saved.state["step"], saved.state["seconds"]
    state.skipped.fill_(saved.state["skipped"])
    if world.main:  # sums are of all processes; one of them carries on with them
        sums = torch.tensor(saved.state["sums"], dtype=state.sums.dtype)
        state.sums[: len(sums)].copy_(sums)  # a checkpoint from before there were teachers has no sum for one
    return True


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    """Optimiser state as "<parameter>/<name>" tensors."""
    names: dict[Tensor, str] = {p: name for name, p in state.model.named_parameters()}
    return {
        f"{names[p]}/{key}": value
        for optimizer in state.optimizers
        for p, values in optimizer.state.items()
        for key, value in values.items()
    }


def _restore_optimizers(state: TrainState, tensors: dict[str, Tensor]) -> None:
    parameters = dict(state.model.named_parameters())
    owner = {p: o for o in state.optimizers for g in o.param_groups for p in g["params"]}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        p = parameters[name]
        owner[p].state.setdefault(p, {})[key] = value.to(p.device)
