"""Auxiliary losses, added to the cross entropy."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor, nn

from slm.config.registry import Registry
from slm.cost.cost import Cost
from slm.model.parts import BuildContext, ModelPart
from slm.model.sequence import Sequence


class AuxPart(ModelPart):
    """Auxiliary losses."""

    @property
    def z_weight(self) -> float:
        """Weight of the squared log-partition."""
        return 0.0

    def build(self, ctx: BuildContext) -> "MultiToken | None":
        """A module that predicts further tokens, if the part has one."""
        return None

    def cost(self, ctx: BuildContext) -> Cost:
        return Cost()


aux = Registry("aux", AuxPart)
AuxSlot = Annotated[AuxPart, aux.field()]


@aux.register("none")
class NoAux(AuxPart):
    """Cross entropy alone."""


@aux.register("z_loss", paper="Chowdhery et al. 2022 (PaLM), arXiv 2204.02311")
class ZLoss(AuxPart):
    """weight x logsumexp(logits)^2, which keeps the logits from drifting."""

    weight: float = pydantic.Field(1e-4, gt=0)
    """Factor on the squared log-partition."""

    @property
    def z_weight(self) -> float:
        return self.weight


class Depth(nn.Module):
    """One more prediction: the state so far, joined with the next token's embedding, through a block of its own."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        self.state_norm, self.token_norm = ctx.norm(), ctx.norm()
        self.join = nn.Linear(2 * ctx.dim, ctx.dim, bias=False)
        self.block = ctx.model.residual.build(ctx)
        self.norm = ctx.norm() if ctx.model.residual.final_norm else nn.Identity()

    def forward(self, state_BTD: Tensor, token_BTD: Tensor, sequence: Sequence, layer: int) -> Tensor:
        both = torch.cat((self.state_norm(state_BTD), self.token_norm(token_BTD)), -1)
        out_BTD, handed = self.block(self.join(both), sequence.at(layer))
        sequence.take(handed)
        return self.norm(out_BTD)  # type: ignore[no-any-return]


class MultiToken(nn.ModuleList):
    """The depths, one after the other."""

    def __init__(self, part: "MultiTokenPrediction", ctx: BuildContext) -> None:
        super().__init__(Depth(ctx) for _ in range(part.depths))
        self.weight, self.layer = part.weight / part.depths, ctx.layer


@aux.register("mtp", paper="DeepSeek-AI 2024 (DeepSeek-V3), arXiv 2412.19437; Gloeckle et al. 2024, arXiv 2404.19737")
class MultiTokenPrediction(AuxPart):
    """Multi-token prediction: each depth predicts one token further, in order; only in training."""

    depths: int = pydantic.Field(1, gt=0)
    """Tokens beyond the next one."""
    weight: float = pydantic.Field(0.3, gt=0)
    """Of the mean of the depths' cross entropies."""
    z_loss: float = pydantic.Field(0.0, ge=0)
    """Weight of the squared log-partition, of all predictions."""

    @property
    def z_weight(self) -> float:
        return self.z_loss

    def build(self, ctx: BuildContext) -> MultiToken | None:
        return MultiToken(self, ctx)

    def cost(self, ctx: BuildContext) -> Cost:
        model, norm = ctx.model, ctx.model.norm.params(ctx.dim)
        conv = sum((model.conv.point_cost(p, w) for p, w in model.conv_widths(ctx).items()), Cost())
        own = ctx.attention.cost(ctx) + ctx.ffn.cost(ctx) + model.residual.cost(ctx) + conv
        join = 2 * ctx.dim * ctx.dim
        norms = norm * (2 + model.residual.final_norm)
        flops = own.flops + 2 * join + model.embedding.costs(ctx)[1].flops
        stored = own.params + join + norms
        return Cost(params=stored, train_only=flops, train_only_per_key=own.flops_per_key) * self.depths
