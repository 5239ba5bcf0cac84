"""Coordinate check: how far a few optimiser steps move the activations, at several widths.

Under a parametrisation whose learning rate carries over in width, the change is the same at every width; under one that
doesn't, it grows (or dies out) with it (Yang et al. 2022, arXiv 2203.03466, appendix D.1). The check needs no data: tokens
are random, and one batch is repeated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slm.config.errors import ConfigError, RunError
from slm.model.config import SLOTS, Model
from slm.model.decoder import Decoder
from slm.train.optim import OptimPart
from slm.train.state import named_parameters

SCALED = ("heads", "kv_heads", "q_rank", "kv_rank", "hidden", "width", "rank", "shortcut_rank")
"""Fields that grow with the width; widths of heads stay."""
FLAT = 0.25
"""Exponents of the width within +- this count as flat."""


@dataclass(frozen=True)
class CoordCheck:
    """Changes by width: ``changes[width][place]`` is the standard deviation of what the steps changed there."""

    changes: dict[int, dict[str, float]]
    exponents: dict[str, float]
    """Slope of log change over log width, by place."""

    @property
    def verdicts(self) -> dict[str, str]:
        """flat, growing or shrinking, by place."""
        return {
            place: "flat" if abs(slope) <= FLAT else "growing" if slope > 0 else "shrinking"
            for place, slope in self.exponents.items()
        }

    @property
    def deciding(self) -> str:
        """The place that the verdict on the model is about: where the change grows fastest, if it grows anywhere; else the
        last block (what the head's random start adds to the logits' change dies out with the width, and says nothing)."""
        fastest = max(self.exponents, key=lambda place: self.exponents[place])
        return fastest if self.verdicts[fastest] == "growing" else "last block"


def widened(model: Model, dim: int) -> Model:
    """The model at another width: as many numbers per head; heads and (rounded) inner widths in proportion.

    Raises:
        ConfigError: a number of heads would not be whole.
    """
    changes: dict[str, Any] = {"dim": dim}
    for slot in SLOTS:
        part = getattr(model, slot)
        scaled = _scaled(
            {name: getattr(part, name) for name in type(part).model_fields}, f"model.{slot}", model.dim, dim
        )
        if scaled:
            changes[slot] = part.with_(**scaled)
    kinds = getattr(model.layout, "kinds", {})
    if kinds:  # what a layout's kinds set for themselves grows as well
        changes["layout"] = model.layout.with_(
            kinds={kind: _widened_kind(kind, kinds[kind], model.dim, dim) for kind in kinds}
        )
    return model.with_(**changes)


def _widened_kind(kind: str, slots: dict[str, Any], old: int, new: int) -> dict[str, Any]:
    return {
        slot: change
        if isinstance(change, str)
        else change | _scaled(change, f"model.layout.kinds.{kind}.{slot}", old, new)
        for slot, change in slots.items()
    }


def _scaled(fields: dict[str, Any], where: str, old: int, new: int) -> dict[str, int]:
    """The fields among ``fields`` that grow with the width, at the new one. ``where`` names their part in an error."""
    found: dict[str, int] = {}
    for name in SCALED:
        value = fields.get(name)
        if not value:
            continue
        if name == "kv_heads" and value == 1:  # multi-query stays multi-query
            new_value = 1
        elif name in ("heads", "kv_heads") and value * new % old:
            raise ConfigError(
                f"At width {new}, {where}.{name}={value} would become {value * new / old:.3g}. Choose widths that are multiples of "
                f"{old // math.gcd(old, value)}."
            )
        else:
            new_value = max(1, round(value * new / old))
        found[name] = new_value
    return found


def coord_check(
    model: Model, optim: OptimPart, widths: list[int], *, steps: int = 4, rows: int = 4, length: int = 64, seed: int = 0
) -> CoordCheck:
    """Take ``steps`` optimiser steps at each width on one batch of random tokens, and measure what changed.

    Raises:
        ConfigError: fewer than two widths, or one at which the model's shape isn't whole.
        RunError: the activations overflowed.
    """
    if len(set(widths)) < 2:
        raise ConfigError("A coordinate check compares at least two widths.")
    models = {width: widened(model, width) for width in sorted(set(widths))}  # all shapes are checked before any work
    length = min(length, model.context or length)
    tokens_BT = torch.randint(model.vocab_, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    changes = {width: _changes(one, optim, tokens_BT, steps, seed) for width, one in models.items()}
    places = next(iter(changes.values())).keys()
    return CoordCheck(changes, {place: _slope({w: c[place] for w, c in changes.items()}) for place in places})


def _changes(model: Model, optim: OptimPart, tokens_BT: Tensor, steps: int, seed: int) -> dict[str, float]:
    decoder = Decoder(model).init_weights(seed)
    optimizers = optim.build(named_parameters(decoder))
    before = _activations(decoder, tokens_BT[:, :-1])
    for _ in range(steps):
        sums = decoder.training_loss(tokens_BT[:, :-1], tokens_BT[:, 1:])
        (sums.loss / sums.count).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    after = _activations(decoder, tokens_BT[:, :-1])
    changes = {place: float((after[place] - before[place]).std()) for place in before}
    if not all(math.isfinite(change) for change in changes.values()):
        raise RunError(
            f"At width {model.dim} the activations are not finite after {steps} steps. Lower train.optim.lr."
        )
    return changes


@torch.no_grad()
def _activations(decoder: Decoder, tokens_BT: Tensor) -> dict[str, Tensor]:
    """The embeddings, the stream behind the first and the last block, and the logits."""
    found: dict[str, Tensor] = {}
    watched = {"embedding": decoder.embedding, "first block": decoder.blocks[0], "last block": decoder.blocks[-1]}

    def keep(place: str, output: Tensor | tuple[Tensor, object]) -> None:
        found[place] = output[0] if isinstance(output, tuple) else output  # blocks hand on more than the stream

    handles = [
        module.register_forward_hook(lambda _m, _i, output, place=place: keep(place, output))
        for place, module in watched.items()
    ]
    try:
        found["logits"] = decoder.logits(decoder(tokens_BT))
    finally:
        for handle in handles:
            handle.remove()
    return {place: found[place].float() for place in (*watched, "logits")}


def _slope(values: dict[int, float]) -> float:
    """Least-squares slope of log value over log width."""
    x = [math.log(width) for width in values]
    y = [math.log(max(value, 1e-30)) for value in values.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
