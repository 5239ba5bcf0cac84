"""Adam-mini: one second moment per row instead of one per weight, which halves AdamW's state.

The Hessian of a transformer is close to block diagonal, and within a block one well-chosen rate does as well as Adam's many. For
matrices the blocks are the rows (output neurons); for embeddings and the head, the rows of tokens. The paper takes a whole head as
the block of queries and keys; rows are finer, which costs a few numbers and asks nothing about the attention's layout. Vectors
(norms, biases) and short convolutions keep a second moment per weight, where the paper has one per vector: they are a
thousandth of the state.

Source: Zhang et al. 2024, "Adam-mini: Use fewer learning rates to gain more", arXiv 2406.16793.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slm.train.optim.steps.guarded import GuardedOptimizer, Keep, adam_direction, clock, descend
from slm.train.optim.steps.shards import local, split_of, zeros_beside


class AdamMiniOptimizer(GuardedOptimizer):
    """Adam-mini. Rows are whole in every shard, so that shards need nothing."""

    def __init__(self, params: Any, *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1, cautious: bool = False, rowwise: float = 1.0) -> None:  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "cautious": cautious, "rowwise": rowwise}  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                if group["rowwise"] and (split := split_of(p)) is not None and split.dim == -1:
                    raise NotImplementedError("adam_mini needs rows whole: shard matrices along their first dimension")

    def fresh(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        square = zeros_beside(p, (*p.shape[:-1], 1)) if group["rowwise"] else torch.zeros_like(p)
        return {"step": clock(p), "exp_avg": torch.zeros_like(p), "exp_avg_sq": square}

    def step_group(self, group: dict[str, Any], params: list[Tensor], keep: Keep) -> None:
        for p, grad in zip(params, self.grads(params), strict=True):
            state = {key: local(t) for key, t in self.state_of(p, group).items()}
            square = grad.square().mean(-1, keepdim=True) if group["rowwise"] else None
            descend(local(p), adam_direction(grad, state, group, keep, square), group, keep)
