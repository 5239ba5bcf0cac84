"""A small mixture of experts: each token goes to its ``top_k`` of ``experts`` gated feed-forwards, none is dropped.

Tokens are sorted by expert, so that each expert multiplies one contiguous block. The router's probabilities are fp32.
A balance penalty E sum_e f_e p_e (Switch Transformer, arXiv 2101.03961, equation 4) is added to the training loss, with f_e the
share of the choices that fell on expert e and p_e its mean probability; 1 where all are used alike.
"""

from __future__ import annotations

from typing import Self

import pydantic
import torch
from torch import Tensor, nn

from slm.cost.cost import Cost
from slm.model.ffn.activations import ACTIVATIONS, activate
from slm.model.ffn.base import FeedForwardPart, ffn
from slm.model.ffn.dense import ActivationName
from slm.model.parts import BuildContext, refuse
from slm.model.sequence import Here


class MixtureModule(nn.Module):
    """See the module's text. Experts are stacked: (experts, out, in)."""

    param_classes = {"gate": "matrix", "up": "matrix", "down": "matrix"}
    keeps_precision = ("router",)
    graph_breaks = "the host reads how many tokens each expert gets"

    def __init__(self, part: "Mixture", ctx: BuildContext) -> None:
        super().__init__()
        E, hidden, dim = part.experts, part.hidden or 0, ctx.dim
        self.part, self.act = part, ACTIVATIONS[part.activation]
        self.router = nn.Linear(dim, E, bias=False)
        self.gate, self.up = nn.Parameter(torch.empty(E, hidden, dim)), nn.Parameter(torch.empty(E, hidden, dim))
        self.down = nn.Parameter(torch.empty(E, dim, hidden))

    def forward(self, x_BTD: Tensor, here: Here) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        share_NE = self.router(x_ND).float().softmax(-1)
        weight_NK, expert_NK = share_NE.topk(self.part.top_k, dim=-1)
        if self.part.normalise:
            weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        if self.training and self.part.balance:
            used_E = torch.zeros_like(share_NE[0]).scatter_add(
                0, expert_NK.flatten(), torch.ones_like(weight_NK.flatten())
            )
            fraction_E = used_E / expert_NK.numel()
            here.penalties.append(self.part.balance * self.part.experts * (fraction_E * share_NE.mean(0)).sum())
        order = expert_NK.flatten().argsort(stable=True)
        token = order // self.part.top_k
        counts = expert_NK.flatten().bincount(minlength=self.part.experts).tolist()
        pieces = [self._expert(e, piece) for e, piece in enumerate(x_ND[token].split(counts)) if len(piece)]
        out_ND = torch.cat(pieces) * weight_NK.flatten()[order, None].to(x_ND.dtype)
        return torch.zeros_like(x_ND).index_add(0, token, out_ND.to(x_ND.dtype)).view_as(x_BTD)

    def _expert(self, e: int, x_MD: Tensor) -> Tensor:
        gate, up = nn.functional.linear(x_MD, self.gate[e]), nn.functional.linear(x_MD, self.up[e])
        return nn.functional.linear(activate(self.act, gate, up), self.down[e])


@ffn.register("moe", paper="Shazeer et al. 2017, arXiv 1701.06538; Gale et al. 2022 (dropless), arXiv 2211.15841")
class Mixture(FeedForwardPart):
    """Mixture of gated experts, top-k, without dropped tokens. ``hidden`` is per expert."""

    experts: int = pydantic.Field(8, gt=1)
    """Feed-forwards to choose from."""
    top_k: int = pydantic.Field(2, gt=0)
    """How many each token goes to."""
    activation: ActivationName = "silu"
    """Of the experts' gates, by name."""
    normalise: bool = True
    """Divide the chosen experts' probabilities by their sum."""
    balance: float = pydantic.Field(0.01, ge=0)
    """Weight of the balance penalty."""

    def resolve(self, dim: int, layers: int) -> Self:
        if self.top_k > self.experts:
            raise refuse(self, f"top_k={self.top_k} is more than experts={self.experts}.")
        default = max(1, -(-8 * dim // 3 // 64) * 64 // self.top_k)  # as many active parameters as a dense one
        return self.with_(hidden=self.hidden or default)

    def build(self, ctx: BuildContext) -> nn.Module:
        return MixtureModule(self, ctx)

    def cost(self, ctx: BuildContext) -> Cost:
        router, expert = ctx.dim * self.experts, 3 * ctx.dim * (self.hidden or 0)
        return Cost(router + self.experts * expert, 2 * (router + self.top_k * expert))
