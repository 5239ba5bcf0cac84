"""Adafactor: the second moments of a matrix from a row and a column, so that almost no state is left.

    r <- b2 r + (1 - b2) mean over columns of g^2        c <- b2 c + (1 - b2) mean over rows of g^2
    u = g / sqrt(r c^T / mean(r)),  u <- u / max(1, rms(u) / d)        p <- p - lr (u + weight_decay p)

b2 grows with the step, 1 - t^-0.8, so no bias needs correcting. Of the paper, what sets the rate by itself (relative steps, the scale of
the parameters) is left out: the schedule sets the rate here, as in Zhai et al. 2022 (arXiv 2106.04560), who also put momentum back
(``momentum``, one number per weight; 0 as in Shazeer & Stern). Vectors keep a second moment per weight.

Sharded, rows and columns are summed over the slices, in two small messages for all tensors of a group.

Source: Shazeer & Stern 2018, "Adafactor: Adaptive learning rates with sublinear memory cost", arXiv 1804.04235.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from slm.train.optim.steps.guarded import GuardedOptimizer, Keep, blend, clock, descend
from slm.train.optim.steps.shards import Split, local, split_of, sum_over, zeros_beside


class AdafactorOptimizer(GuardedOptimizer):
    """Adafactor with the rate from outside."""

    def __init__(
        self, params: Any, *, lr: float = 1e-3, momentum: float = 0.0, decay_power: float = 0.8, clip_rms: float = 1.0,
        eps: float = 1e-30, weight_decay: float = 0.1, cautious: bool = False, factored: float = 1.0,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "momentum": momentum, "decay_power": decay_power, "clip_rms": clip_rms, "eps": eps,
            "weight_decay": weight_decay, "cautious": cautious, "factored": factored,
        }  # fmt: skip
        super().__init__(params, defaults)

    def fresh(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = {"step": clock(p)}
        if group["momentum"]:
            state["exp_avg"] = torch.zeros_like(p)
        if not group["factored"]:
            return state | {"exp_avg_sq": torch.zeros_like(p)}
        return state | {"row": zeros_beside(p, (*p.shape[:-1], 1)), "column": _columns_beside(p)}

    def step_group(self, group: dict[str, Any], params: list[Tensor], keep: Keep) -> None:
        by_split: dict[Split | None, list[Tensor]] = defaultdict(list)
        for p in params:
            split = split_of(p)
            if group["factored"] and split is not None and split.dim == -1:
                raise NotImplementedError("adafactor needs rows whole: shard matrices along their first dimension")
            whole = group["factored"] and split is not None and split.dim < -2  # a stack that is cut between matrices
            by_split[None if whole else split].append(p)
        for split, members in by_split.items():
            self._step(group, split, members, keep)

    def _step(self, group: dict[str, Any], split: Split | None, params: list[Tensor], keep: Keep) -> None:
        grads = self.grads(params)
        states = [{key: local(t) for key, t in self.state_of(p, group).items()} for p in params]
        shares = [(1 - self._beta2(group, state, keep)) * keep for state in states]
        if group["factored"]:
            self._factored(group, split, params, list(zip(grads, states, shares, strict=True)))
        else:
            for grad, state, share in zip(grads, states, shares, strict=True):
                v = state["exp_avg_sq"]
                blend(v, grad.square().add_(group["eps"]), share)
                grad.mul_(v.clamp(min=group["eps"]).rsqrt_())
        sizes = [_size(p, group) for p in params]
        squares = sum_over(split, [_sum(u.square(), group) for u in grads])
        for p, u, state, square, size in zip(params, grads, states, squares, sizes, strict=True):
            u.div_(((square / size).sqrt_() / group["clip_rms"]).clamp_(min=1.0))
            if group["momentum"]:
                m = state["exp_avg"]
                blend(m, u, (1 - group["momentum"]) * keep)
                u = m
            descend(local(p), u, group, keep)

    @staticmethod
    def _beta2(group: dict[str, Any], state: dict[str, Tensor], keep: Keep) -> Tensor:
        state["step"].add_(keep)
        return 1 - state["step"].clamp(min=1) ** -group["decay_power"]

    @staticmethod
    def _factored(
        group: dict[str, Any], split: Split | None, params: list[Tensor], members: list[tuple[Tensor, dict[str, Tensor], Tensor]]
    ) -> None:  # fmt: skip
        """Bring rows and columns up to date and turn gradients into updates, in place."""
        columns, rows = list[Tensor](), list[Tensor]()
        for grad, state, share in members:
            square, row = grad.square().add_(group["eps"]), state["row"]
            blend(row, square.mean(-1, keepdim=True), share)
            columns.append(square.sum(-2, keepdim=True))
            rows.append(row.sum(-2, keepdim=True))
        sums = sum_over(split, columns + rows)
        for p, (grad, state, share), column_sum, row_sum in zip(
            params, members, sums[: len(members)], sums[len(members) :], strict=True
        ):
            column = state["column"]
            blend(column, column_sum / p.shape[-2], share)
            grad.mul_(
                (state["row"] / (row_sum / p.shape[-2]).clamp_(min=group["eps"])).clamp_(min=group["eps"]).rsqrt_()
            )
            grad.mul_(column.clamp(min=group["eps"]).rsqrt_())


def _columns_beside(p: Tensor) -> Tensor:
    """Zeros for a matrix's columns, which every process that has rows of it keeps."""
    split, shape = split_of(p), (*p.shape[:-2], 1, p.shape[-1])
    if split is not None and split.dim < -2:  # a stack that is cut between matrices
        return zeros_beside(p, shape)
    return torch.zeros(shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)


def _sum(x: Tensor, group: dict[str, Any]) -> Tensor:
    """Per matrix of a stack; over everything for a vector."""
    return x.sum((-2, -1), keepdim=True) if group["factored"] else x.sum()


def _size(p: Tensor, group: dict[str, Any]) -> int:
    """Numbers that `_sum` adds up."""
    return p.shape[-2] * p.shape[-1] if group["factored"] else p.numel()
