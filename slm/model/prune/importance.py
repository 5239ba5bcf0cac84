"""What matters in a model, read off its activations over some text.

===========  ================================================================================================
of           is the mean over tokens of
===========  ================================================================================================
dim          the size |y| of what the norms over the residual stream put out, added up over these norms
hidden       the size |a| of what a feed-forward's output projection reads
heads        the length of a head's output, which the output projection reads
layers       1 - cos(x, block(x)): how much a block turns the stream (block influence)
===========  ================================================================================================

The first three are Minitron's (Muralidharan et al. 2024, arXiv 2407.14679, section 2.2), the last is ShortGPT's (Men et al.
2024, arXiv 2403.03853).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slm.model.axes import axes_of
from slm.model.decoder import Decoder
from slm.model.norm import Norm, TanhNorm

Rows = tuple[Tensor, Tensor, Tensor]
"""Tokens, positions and documents of some rows, (B, T) each."""


@dataclass(frozen=True)
class Importance:
    """Larger matters more. ``heads`` and ``hidden``: by block; empty where a block has none that can be cut."""

    dim: Tensor
    layers: list[float]
    heads: dict[int, Tensor]
    hidden: dict[int, Tensor]


@torch.no_grad()
def measure(model: Decoder, rows: Iterable[Rows]) -> Importance:
    """Run the model over rows and note what its activations are like."""
    sums: dict[tuple[str, int], Tensor] = {}

    def add(key: tuple[str, int], values: Tensor) -> None:
        sums[key] = sums.get(key, torch.zeros(())) + values.double().cpu()

    count = 0
    with ExitStack() as stack:
        for name, module in model.named_modules():
            for handle in _watch(model, name, module, add):
                stack.callback(handle.remove)
        for tokens_BT, positions_BT, docs_BT in rows:
            model(tokens_BT, positions_BT=positions_BT, docs_BT=docs_BT)
            count += tokens_BT.numel()
    by_block = {
        kind: {block: s / count for (k, block), s in sums.items() if k == kind} for kind in ("heads", "hidden", "layer")
    }
    dim = sum((s for (kind, _), s in sums.items() if kind == "dim"), torch.zeros(model.config.dim).double())
    layers = [float(by_block["layer"][i]) for i in range(len(model.blocks))]
    return Importance(dim / count, layers, by_block["heads"], by_block["hidden"])


Add = Callable[[tuple[str, int], Tensor], None]


def _watch(model: Decoder, name: str, module: nn.Module, add: Add) -> list[Any]:
    """Hooks on a module that is worth watching."""
    axes = axes_of(model, f"{name}.weight") if isinstance(module, nn.Linear | Norm | TanhNorm) else None
    if axes == ("dim",):  # a norm of the stream, also one without a gain

        def of_stream(_: nn.Module, __: Any, y: Tensor) -> None:
            add(("dim", -1), y.abs().flatten(0, -2).sum(0))

        return [module.register_forward_hook(of_stream)]
    if isinstance(module, nn.Linear) and axes is not None and axes[1] in ("q", "hidden") and name.startswith("blocks."):
        block, heads = int(name.split(".")[1]), axes[1] == "q"
        size = model.config.contexts[block].attention.rotary_dim

        def of_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2)
            add(
                ("heads" if heads else "hidden", block),
                (x.unflatten(-1, (-1, size)).norm(dim=-1) if heads else x.abs()).sum(0),
            )

        return [module.register_forward_pre_hook(of_input)]
    if module in list(model.blocks):
        block = int(name.split(".")[1])

        def of_block(_: nn.Module, inputs: tuple[Any, ...], out: tuple[Tensor, Any]) -> None:
            add(("layer", block), (1 - torch.cosine_similarity(inputs[0].float(), out[0].float(), dim=-1)).sum())

        return [module.register_forward_hook(of_block)]
    return []
