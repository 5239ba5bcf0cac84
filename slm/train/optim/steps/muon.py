"""Muon: momentum whose update is replaced by the nearest (semi-)orthogonal matrix.

For a matrix with momentum M = U S V^T the update is about U V^T (see `newton_schulz`): every direction moves by the same amount,
instead of a few dominating. Matrices of one shape are stacked, so a model of 30 equal layers costs a handful of batched products.

**What is one matrix?** U V^T of a stack of rows is not the stack of the parts' own. Here q, k and v are parameters of their own and
each is orthogonalised as a whole, over all heads, as Jordan's and Moonshot's code do. A rule with ``blocks: n`` cuts a matrix into n
equal blocks of rows that are treated by themselves: ``{match: '\\.[qk]\\.weight$', blocks: 12}`` is Muon per head, and a fused
qkv of equal widths wants ``blocks: 3``.

**Sharded**, the momentum lives with the weights' slices; what is exchanged is the update (see `shards`), in the precision in which
it is orthogonalised.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
scalable for LLM training", arXiv 2502.16982.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from slm.train.optim.steps.guarded import GuardedOptimizer, Keep, blend, descend
from slm.train.optim.steps.newton_schulz import orthogonalise, working_dtype
from slm.train.optim.steps.shards import Exchange, local, split_of_matrices

UPDATE_RMS = 0.2
"""Root mean square of an update at rate 1: about what AdamW's updates have (Liu et al. 2025, arXiv 2502.16982)."""
STACK = 1 << 27
"""Most numbers of a stack that one process orthogonalises at once: bounds the memory of a step."""


class MuonOptimizer(GuardedOptimizer):
    """Muon for matrices and stacks of them (3-D), with Nesterov momentum and decoupled weight decay."""

    def __init__(
        self, params: Any, *, lr: float = 4e-3, momentum: float = 0.95, weight_decay: float = 0.1, nesterov: bool = True,
        scale: str = "adamw", polynomial: str = "jordan", ns_steps: int = 5, cautious: bool = False, blocks: int = 1,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov, "scale": scale,
            "polynomial": polynomial, "ns_steps": ns_steps, "cautious": cautious, "blocks": blocks,
        }  # fmt: skip
        super().__init__(params, defaults)
        refuse_other_than_matrices("Muon", self)

    def fresh(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(p)}

    def step_group(self, group: dict[str, Any], params: list[Tensor], keep: Keep) -> None:
        for chunk in stacks(params):
            updates = self._momentum(group, chunk, keep)
            rate = update_scale(group["scale"], chunk[0].shape[-2] // int(group["blocks"]), chunk[0].shape[-1])
            for p, update in zip(chunk, orthogonalised(group, chunk, updates), strict=True):
                descend(local(p), update.to(p.dtype), group, keep, rate)

    def _momentum(self, group: dict[str, Any], params: list[Tensor], keep: Keep) -> list[Tensor]:
        """This process's part of what is to be orthogonalised; momenta brought up to date."""
        grads, moments = self.grads(params), self.moments(group, params, "momentum")
        for moment, grad in zip(moments, grads, strict=True):
            blend(moment, grad, (1 - group["momentum"]) * keep)
        if not group["nesterov"]:
            return moments
        return [grad.lerp(moment, group["momentum"]) for grad, moment in zip(grads, moments, strict=True)]


def orthogonalised(group: dict[str, Any], params: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """The orthogonal matrices nearest to the updates, of which this process has parts, and gets parts back."""
    split = split_of_matrices(params[0])
    if split is None:
        return list(_orthogonalise_blocks(group, torch.stack(updates)))
    rows, columns = params[0].shape[-2:]
    depth = params[0].numel() // (rows * columns)
    pieces = [piece for u in updates for piece in u.to(working_dtype(u)).view(depth, *u.shape[-2:])]
    exchange = Exchange(split, rows, columns, len(pieces), first=rows + columns)  # odd ones of other shapes elsewhere
    done = exchange.scatter(_orthogonalise_blocks(group, exchange.gather(pieces)))
    return [torch.stack(done[i * depth : (i + 1) * depth]).view_as(u) for i, u in enumerate(updates)]


def _orthogonalise_blocks(group: dict[str, Any], stack: Tensor) -> Tensor:
    """(..., rows, columns), each block of rows by itself."""
    if not stack.numel():
        return stack
    blocks = stack.reshape(-1, stack.shape[-2] // int(group["blocks"]), stack.shape[-1])
    return orthogonalise(blocks, group["polynomial"], group["ns_steps"]).view_as(stack)


def update_scale(scale: str, rows: int, columns: int) -> float:
    """Factor on an orthogonal matrix, whose root mean square is 1 / sqrt(max(rows, columns))."""
    if scale == "adamw":
        return UPDATE_RMS * float(max(rows, columns)) ** 0.5
    return max(1.0, rows / columns) ** 0.5


def stacks(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one shape together, as many as may be stacked at once."""
    by_shape: dict[Any, list[Tensor]] = defaultdict(list)
    for p in params:
        by_shape[p.shape, split_of_matrices(p)].append(p)
    for (shape, split), members in by_shape.items():
        most = max(1, STACK * (split.size if split else 1) // max(1, shape.numel()))
        yield from (members[i : i + most] for i in range(0, len(members), most))


def refuse_other_than_matrices(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Raises `ValueError` for a parameter that is neither a matrix nor a stack of matrices."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.ndim not in (2, 3):
                raise ValueError(f"{name} takes matrices only, got a parameter of shape {tuple(p.shape)}")
