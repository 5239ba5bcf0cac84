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
from slm.checkpoint.restore import check_weights
from slm.config.errors import RunError
from slm.config.yaml import dump_yaml
from slm.data.corpus import Corpus
from slm.data.loader import Loader
from slm.model.classes import classify
from slm.model.decoder import Decoder
from slm.model.init import describe_tensor
from slm.train.averaging import Ema
from slm.train.course import Course
from slm.train.losses import LossModule
from slm.train.optim import NamedParameter
from slm.train.optim.steps import evaluation_weights, final_weights, init_state
from slm.train.optim.steps.shards import local, whole
from slm.train.parallel import Spread
from slm.train.parallel.world import World
from slm.train.spikes import SpikeGuard

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
    spread: Spread
    """The model with its loss, as the processes share it: what is called."""
    guard: SpikeGuard
    sums: Tensor
    """Shape (len(SUMS),), of this process, since the last record."""
    ema: Ema | None = None
    step: int = 0
    seconds: float = 0.0
    """Time spent in steps, over all sessions."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the averaged weights in the model, where there are such."""
        with self.ema.swapped_in() if self.ema is not None else nullcontext():
            yield

    def whole_model(self) -> Decoder:
        """The model to be used, in this process alone: averaged weights where there are such, put together where they are sharded.

        All processes call it.
        """
        final_weights(self.optimizers)
        with self.averaged():
            weights = {name: whole(p.detach()) for name, p in self.model.named_parameters()}
            if all(w is p for w, p in zip(weights.values(), self.model.parameters(), strict=True)) and self.ema is None:
                return self.model
            model = Decoder(self.model.config).to(next(iter(weights.values())).device)
            model.attention_backend = self.model.attention_backend
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(weights[name])
        return model


def build(run: "Run", loader: Loader, course: Course, world: World) -> TrainState:
    """A fresh state: initial weights from the seed, spread over the processes; optimisers with every parameter in exactly one group."""
    model = Decoder(run.model).init_weights(run.train.seed).to(world.device)
    model.attention_backend = run.impl.attention
    spread = run.impl.parallel.spread(LossModule(model), model, world)
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


def counters_of(state: TrainState, run: "Run", tokens: int, world: World) -> dict[str, Any]:
    """The rest of a checkpoint: numbers. All processes call it."""
    return {
        "step": state.step,
        "tokens": tokens,
        "loader": state.loader.state(),
        "sums": world.sum(state.sums.clone()).tolist(),
        "seconds": state.seconds,
        "identity": run.identity,
    }


def save(state: TrainState, run: "Run", corpus: Corpus, run_dir: Path, world: World) -> None:
    """Write a checkpoint of the state, on the main process. What it calls the model's weights are those to be used."""
    counters = counters_of(state, run, state.loader.next_row * run.data.seq_len, world)
    with evaluation_weights(state.optimizers):
        groups = {group: {n: whole(t) for n, t in tensors.items()} for group, tensors in tensors_of(state).items()}
        if not world.main:
            return
        extra = {f"{group}:{n}": t for group in ("guard", "ema") for n, t in groups.get(group, {}).items()}
        checkpoint.save(
            run_dir,
            state.step,
            model=groups["model"],
            optimizer=groups["optimizer"] | extra,
            state=counters,
            config=dump_yaml(run.model_dump(mode="json"), run.notes),
            tokenizer=corpus.tokenizer_bytes,
            keep=run.log.keep,
        )


def resume(state: TrainState, found: Path, world: World, *, rows_before: Callable[[int], int] | None = None) -> None:
    """Load a checkpoint into the state. ``rows_before``: a branch may go on with other data, at the row that this gives for its step."""
    saved = checkpoint.load(found)
    init_state(state.optimizers)
    with evaluation_weights(state.optimizers):  # as it was saved; afterwards the weights that are trained are there
        for group, tensors in tensors_of(state).items():
            if group == "model":
                check_weights(tensors, saved.model, found)
            prefix = "" if group in ("model", "optimizer") else f"{group}:"
            source = saved.model if group == "model" else saved.optimizer
            for name, t in tensors.items():
                if prefix + name not in source:
                    raise RunError(f"{found}: no {name!r} in {group}.")
                fill(t, source[prefix + name])
    state.step, state.seconds = saved.state["step"], saved.state["seconds"]
    place = saved.state["loader"]
    if rows_before is not None and place["plan"] != state.loader.plan.hash:
        place = place | {"next_row": rows_before(state.step)}
    state.loader.restore(place, allow_data_change=rows_before is not None)
    if world.main:  # sums are of all processes; one of them carries on with them
        state.sums.copy_(torch.tensor(saved.state["sums"], dtype=state.sums.dtype))


def fill(t: Tensor, value: Tensor) -> None:
    """Copy a whole tensor's values into a tensor, or into this process's part of it."""
    with torch.no_grad():
        if hasattr(t, "to_local"):
            from torch.distributed.tensor import distribute_tensor

            value = distribute_tensor(value.to(t.device), t.device_mesh, t.placements, src_data_rank=None).to_local()  # type: ignore[attr-defined]
        local(t).copy_(value)
