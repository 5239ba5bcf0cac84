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

from slm.config.errors import ConfigError
from slm.model.config import SLOTS, Model
from slm.model.decoder import Decoder
from slm.model.parts import ModelPart
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


def widened(model: Model, dim: int) -> Model:
    """The model at another width: as many numbers per head; heads and (rounded) inner widths in proportion.

    Raises:
        ConfigError: a number of heads would not be whole.
    """
    changes: dict[str, Any] = {"dim": dim}
    for slot in SLOTS:
        part = getattr(model, slot)
        own = [name for name in SCALED if name in type(part).model_fields and getattr(part, name)]
        scaled = {name: _scaled(part, name, model.dim, dim) for name in own}
        if scaled:
            changes[slot] = part.with_(**scaled)
    return model.with_(**changes)


def _scaled(part: ModelPart, name: str, old: int, new: int) -> int:
    value: int = getattr(part, name)
    if name == "kv_heads" and value == 1:  # multi-query stays multi-query
        return 1
    if name in ("heads", "kv_heads") and value * new % old:
        raise ConfigError(
            f"At width {new}, {part.slot}.{name}={value} would become {value * new / old:.3g}. Choose widths that are multiples of "
            f"{old // math.gcd(old, value)}."
        )
    return max(1, round(value * new / old))


def coord_check(
    model: Model, optim: OptimPart, widths: list[int], *, steps: int = 4, rows: int = 4, length: int = 64, seed: int = 0
) -> CoordCheck:
    """Take ``steps`` optimiser steps at each width on one batch of random tokens, and measure what changed.

    Raises:
        ConfigError: fewer than two widths, or one at which the model's shape isn't whole.
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
    return {place: float((after[place] - before[place]).std()) for place in before}


@torch.no_grad()
def _activations(decoder: Decoder, tokens_BT: Tensor) -> dict[str, Tensor]:
    """The embeddings, the stream behind the first and the last block, and the logits."""
    found: dict[str, Tensor] = {}
    watched = {"embedding": decoder.embedding, "first block": decoder.blocks[0], "last block": decoder.blocks[-1]}
    handles = [
        module.register_forward_hook(lambda _m, _i, output, place=place: found.__setitem__(place, output))
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
