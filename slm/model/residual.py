"""A block: where the norms stand and how the branches join the residual stream."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from slm.config.registry import Registry
from slm.cost.cost import Cost
from slm.model.parts import BuildContext, ModelPart
from slm.model.sequence import Sequence


class ResidualPart(ModelPart):
    """An arrangement of a block. Its module is called as ``block(x_BTD, sequence) -> (B, T, D)``."""

    def build(self, ctx: BuildContext) -> nn.Module:
        raise NotImplementedError


residual = Registry("residual", ResidualPart)
ResidualSlot = Annotated[ResidualPart, residual.field()]


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        self.layer = ctx.layer
        self.attention_norm, self.attention = ctx.norm(), ctx.attention.build(ctx)
        self.ffn_norm, self.ffn = ctx.norm(), ctx.ffn.build(ctx)

    def forward(self, x_BTD: Tensor, sequence: Sequence) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), sequence, self.layer)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))  # type: ignore[no-any-return]


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + ffn(norm(x)), with one norm for both branches."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        self.layer, self.norm = ctx.layer, ctx.norm()
        self.attention, self.ffn = ctx.attention.build(ctx), ctx.ffn.build(ctx)

    def forward(self, x_BTD: Tensor, sequence: Sequence) -> Tensor:
        y_BTD = self.norm(x_BTD)
        return x_BTD + self.attention(y_BTD, sequence, self.layer) + self.ffn(y_BTD)  # type: ignore[no-any-return]


@residual.register("pre", paper="Xiong et al. 2020, arXiv 2002.04745")
class PreNorm(ResidualPart):
    """Attention, then feed-forward, each on the normalised stream."""

    def build(self, ctx: BuildContext) -> nn.Module:
        return PreNormBlock(ctx)

    def cost(self, ctx: BuildContext) -> Cost:
        return 2 * ctx.model.norm.cost(ctx)


@residual.register("parallel", paper="Wang & Komatsuzaki 2021 (GPT-J)")
class Parallel(ResidualPart):
    """Attention and feed-forward side by side on one normalised stream."""

    def build(self, ctx: BuildContext) -> nn.Module:
        return ParallelBlock(ctx)

    def cost(self, ctx: BuildContext) -> Cost:
        return ctx.model.norm.cost(ctx)
