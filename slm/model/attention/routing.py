"""Which backend a model's layers take, known before they run: to be said, to be refused, and to make masks that graphs can't."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from slm.model.attention.backends import Choice, Request, choose
from slm.model.attention.flex import block_mask
from slm.model.config import Model
from slm.model.sequence import Mask


def requests(
    model: Model, device: torch.device, dtype: torch.dtype, length: int, *, documents: bool, gradient: bool = True
) -> Iterator[tuple[int, int | None, Request]]:
    """(layer, window, what it asks for) of every layer with softmax attention, for rows of ``length`` tokens."""
    for place in model.contexts:
        wishes = place.attention.wishes(place)
        if wishes is not None:
            window = None if wishes.window is None or wishes.window >= length else wishes.window
            slopes = place.position.per_head and place.attention.positional
            yield (
                place.layer,
                wishes.window,
                Request(
                    device, dtype, length, length, wishes.width, wishes.value_width, wishes.grouped, documents,
                    window is not None, wishes.softcap, slopes, wishes.sinks, gradient,
                ),
            )  # fmt: skip


def explain(
    name: str, model: Model, device: torch.device, dtype: torch.dtype, length: int, *, documents: bool = True,
    graph: bool = False,
) -> dict[Choice, list[int]]:  # fmt: skip
    """What ``impl.attention=name`` means in training: each choice with its layers.

    Raises:
        ConfigError: a layer's attention can't be done by it.
    """
    found: dict[Choice, list[int]] = {}
    for layer, _, asked in requests(model, device, dtype, length, documents=documents):
        found.setdefault(choose(name, asked._replace(graph=graph)), []).append(layer)
    return found


def told(found: dict[Choice, list[int]]) -> str:
    """One line for the log; empty where no layer has softmax attention."""
    several = len(found) > 1
    parts = [
        f"{c.backend} ({c.reason})" + (f" in layers {', '.join(map(str, layers))}" if several else "")
        for c, layers in found.items()
    ]
    return f"Attention: {'; '.join(parts)}" if parts else ""


def prepare(name: str, model: Model, mask: Mask, dtype: torch.dtype) -> None:
    """Make the masks of blocks that Flex will want, since a compiled block can't do it well. Nothing elsewhere."""
    if name not in ("auto", "flex") or (name == "auto" and mask.device.type != "cuda") or mask.past:
        return
    gradient, documents = torch.is_grad_enabled(), mask.docs_BT is not None
    for _, window, asked in requests(model, mask.device, dtype, mask.length, documents=documents, gradient=gradient):
        if choose(name, asked._replace(graph=mask.graph)).backend == "flex":
            block_mask(mask, mask.length, window)
