"""The smaller model's weights: those that matter, in their old order.

Norms divide by a size that is taken over the whole width. Where a cut takes channels away, what is left of a vector has
another root mean square, and the norm would make it larger or smaller than the weights behind are used to. The gain of
every norm over a cut axis is therefore multiplied by the mean of size(cut) / size(whole) over the calibration rows. Where
the channels that go are zero this is exact but for eps: the cut model computes the same as the whole one.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slm.config.errors import ConfigError
from slm.model.axes import axes_of
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.model.norm import Norm
from slm.model.parts import refuse
from slm.model.prune.importance import Importance, Rows
from slm.model.prune.shape import is_narrower


@dataclass(frozen=True)
class Kept:
    """What stays: blocks by number, and by block the indices along each axis that is cut; -1 for what isn't in a block."""

    blocks: list[int]
    along: dict[int, dict[str, Tensor]]


@torch.no_grad()
def cut(model: Decoder, to: Model, importance: Importance, rows: Iterable[Rows]) -> tuple[Decoder, Kept]:
    """``model`` cut to the config ``to`` (see `smaller`), keeping what matters most.

    Raises:
        ConfigError: a parameter that would have to be cut, and no module says along what.
    """
    if model.further is not None and is_narrower(model.config, to):
        raise refuse(
            to.aux, "its own block predicts from the whole width and isn't cut. Prune layers only, or train without it."
        )
    kept = choose(model.config, to, importance)
    small = Decoder(to)
    ours = dict(model.named_parameters())
    for name, parameter in small.named_parameters():
        old, block = _origin(name, kept)
        parameter.copy_(_select(model, old, ours[old], kept.along.get(block, {})))
    if is_narrower(model.config, to):
        for name, factor in _norm_factors(model, kept, rows).items():
            small.get_submodule(name).rescale_(factor)  # type: ignore[operator]
    return small.eval(), kept


def choose(model: Model, to: Model, importance: Importance) -> Kept:
    """The most important blocks, channels and heads."""
    blocks = top(torch.tensor(importance.layers), to.layers).tolist()
    stream = {"dim": top(importance.dim, to.dim)} if to.dim < model.dim else {}
    along = {-1: stream}
    for block in blocks:
        along[block] = dict(stream)
        if to.ffn != model.ffn:
            along[block]["hidden"] = top(importance.hidden[block], to.ffn.hidden or 0)
        if to.attention != model.attention:
            along[block] |= _heads(model, to, importance.heads[block])
    return Kept(blocks, along)


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest, in ascending order; of equals the first."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def _heads(model: Model, to: Model, scores_H: Tensor) -> dict[str, Tensor]:
    """Whole groups first: the key/value heads whose query heads matter most together, then equally many query heads in each."""
    before, after, width = model.attention.canonical(), to.attention.canonical(), model.attention.rotary_dim
    groups, kept_groups = before.groups, after.groups  # type: ignore[attr-defined]
    scores_GN = scores_H.view(groups, -1)
    each = after.heads // kept_groups  # type: ignore[attr-defined]
    group_ids = top(scores_GN.topk(each, -1).values.sum(-1), kept_groups)
    size = scores_GN.shape[1]
    heads = torch.cat([g * size + top(scores_GN[g], each) for g in group_ids])
    return {"groups": group_ids, "kv": _wide(group_ids, width), "heads": heads, "q": _wide(heads, width)}


def _wide(ids: Tensor, width: int) -> Tensor:
    """Indices of all channels of some heads."""
    return (ids[:, None] * width + torch.arange(width)).flatten()


def _origin(name: str, kept: Kept) -> tuple[str, int]:
    """A parameter's name in the whole model, and its block there (-1: none)."""
    if not name.startswith("blocks."):
        return name, -1
    _, number, rest = name.split(".", 2)
    block = kept.blocks[int(number)]
    return f"blocks.{block}.{rest}", block


def _select(model: Decoder, name: str, tensor: Tensor, along: dict[str, Tensor]) -> Tensor:
    if not along:
        return tensor
    axes = axes_of(model, name)
    if axes is None:
        part = name.split(".")[2] if name.startswith("blocks.") else name.split(".")[0]
        raise ConfigError(
            f"Can't cut {name}: nothing says along what it runs (model.{part}). Its module has to list it in ``axes``, as slm.model.axes "
            f"explains. Layers alone can still be pruned."
        )
    for dimension, axis in enumerate(axes):
        if axis is not None and axis in along:
            tensor = tensor.index_select(dimension, along[axis].to(tensor.device))
    return tensor


def _norm_factors(model: Decoder, kept: Kept, rows: Iterable[Rows]) -> dict[str, float]:
    """By name in the cut model: the mean of size(cut) / size(whole) of what each norm over a cut axis reads."""
    factors: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        for name, ids, module in _cut_norms(model, kept):

            def watch(norm: nn.Module, inputs: tuple[Tensor, ...], name: str = name, ids: Tensor = ids) -> None:
                x = inputs[0]
                part, whole = (norm.size(v) for v in (x.index_select(-1, ids.to(x.device)), x))  # type: ignore[operator]
                factors.setdefault(name, []).append((part / whole)[whole > 0].mean())

            stack.callback(module.register_forward_pre_hook(watch).remove)
        for tokens_BT, positions_BT, docs_BT in rows:
            model(tokens_BT, positions_BT=positions_BT, docs_BT=docs_BT)
    return {name: float(torch.stack(found).mean()) for name, found in factors.items()}


def _cut_norms(model: Decoder, kept: Kept) -> Iterable[tuple[str, Tensor, Norm]]:
    """(name in the cut model, indices kept, module) of the norms whose width shrinks."""
    for name, module in model.named_modules():
        if not isinstance(module, Norm):
            continue
        block = int(name.split(".")[1]) if name.startswith("blocks.") else -1
        axes, along = axes_of(model, f"{name}.weight"), kept.along.get(block)
        if along is None or axes is None or axes[-1] not in along:
            continue
        if block >= 0:
            name = ".".join(["blocks", str(kept.blocks.index(block)), *name.split(".")[2:]])
        yield name, along[axes[-1]], module  # type: ignore[index]
