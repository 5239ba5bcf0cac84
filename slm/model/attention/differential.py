"""Differential attention: the difference of two softmax maps, which cancels what both attend to.

Head i of the first half and head i of the second half form a pair that shares values twice as wide:

    out_i = (1 - lambda_0) norm(softmax(q1 k1) v - lambda softmax(q2 k2) v)
    lambda = exp(a1 b1) - exp(a2 b2) + lambda_0,   lambda_0 = 0.8 - 0.6 exp(-0.3 layer)
"""

from __future__ import annotations

import math
from typing import Self

import pydantic
import torch
from torch import Tensor, nn

from slm.cost.cost import Cost
from slm.model.attention.backends import Scores, attend
from slm.model.attention.base import attention
from slm.model.attention.rotation import prepared
from slm.model.attention.scores import Wishes
from slm.model.attention.softmax import SoftmaxPart
from slm.model.cache import Room
from slm.model.classes import Drawn
from slm.model.norm import NormSlot, RMSNormPart
from slm.model.parts import BuildContext, refuse
from slm.model.sequence import Here


class DifferentialAttention(nn.Module):
    """See the module's text."""

    param_classes = {"lambdas": "scalar"}

    def __init__(self, part: "Differential", ctx: BuildContext) -> None:
        super().__init__()
        self.part, dim = part, ctx.dim
        self.heads, self.kv_heads, self.head_dim = part.heads_, part.kv_heads or 0, part.rotary_dim
        self.q = nn.Linear(dim, self.heads * self.head_dim, bias=part.qkv_bias)
        self.k = nn.Linear(dim, self.kv_heads * self.head_dim, bias=part.qkv_bias)
        self.v = nn.Linear(dim, self.kv_heads * self.head_dim, bias=part.qkv_bias)
        self.o = nn.Linear(self.heads * self.head_dim, dim, bias=part.out_bias)
        self.lambdas = nn.Parameter(torch.empty(4, self.head_dim))  # a1, b1, a2, b2
        self.starts = {"lambdas": Drawn(part.lambda_std)}
        self.scale = part.scale_ * ctx.model.parametrization.attention_factor(ctx.model, self.head_dim)
        self.norm = part.pair_norm.build(2 * self.head_dim)
        self.lambda_0 = 0.8 - 0.6 * math.exp(-0.3 * ctx.block)

    def forward(self, x_BTD: Tensor, here: Here) -> Tensor:
        B, T, _ = x_BTD.shape
        encoding = here.encoding
        q_BTHK, k_BTGK = self.q(x_BTD).view(B, T, self.heads, -1), self.k(x_BTD).view(B, T, self.kv_heads, -1)
        q_BHTK, k_BGTK = prepared(q_BTHK, k_BTGK, encoding)
        v_BGTK = self.v(x_BTD).view(B, T, self.kv_heads, -1).transpose(1, 2)
        if here.memory is not None:
            k_BGTK, v_BGTK = here.memory.append(k_BGTK, v_BGTK)
        pair_BGTV = torch.cat(v_BGTK.chunk(2, 1), -1).repeat(
            1, 2, 1, 1
        )  # both halves of the heads see both halves' values
        scores = Scores(self.scale, self.part.window, slopes_H=encoding.slopes(self.heads, q_BHTK))
        out_BHTV = attend(q_BHTK, k_BGTK, pair_BGTV, here.mask, scores, backend=here.backend)
        first, second = out_BHTV.chunk(2, 1)
        a1, b1, a2, b2 = self.lambdas.float()
        weight = ((a1 * b1).sum().exp() - (a2 * b2).sum().exp() + self.lambda_0).to(first.dtype)
        out_BHTV = (1 - self.lambda_0) * self.norm(first - weight * second)
        return self.o(out_BHTV.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]


@attention.register("differential", paper="Ye et al. 2024 (Differential Transformer), arXiv 2410.05258")
class Differential(SoftmaxPart):
    """Differential attention: pairs of heads subtract their attention maps."""

    kv_heads: int | None = pydantic.Field(None, gt=0)
    """Key/value heads: an even divisor of ``heads``; all heads by default."""
    pair_norm: NormSlot = RMSNormPart(gain="none")
    """Norm of a pair's output."""
    lambda_std: float = pydantic.Field(0.1, gt=0)
    """Standard deviation that the lambda vectors start with."""

    def resolve(self, dim: int, layers: int) -> Self:
        shape = self.resolve_heads(dim)
        heads = shape["heads"]
        kv_heads = self.resolve_groups(heads, self.kv_heads or heads)
        if heads % 2 or kv_heads % 2:
            raise refuse(self, f"heads={heads} and kv_heads={kv_heads} must both be even: heads work in pairs.")
        return self.with_(**shape, kv_heads=kv_heads)

    def build(self, ctx: BuildContext) -> nn.Module:
        return DifferentialAttention(self, ctx)

    def cost(self, ctx: BuildContext) -> Cost:
        heads, groups, width = self.heads_, self.kv_heads or 0, self.rotary_dim
        rows = ctx.dim * width * (2 * heads + 2 * groups)
        extra = 4 * width + self.pair_norm.params(2 * width)
        extra += (heads + 2 * groups) * width * self.qkv_bias + ctx.dim * self.out_bias
        per_key = 2 * heads * 3 * width  # scores over K, values over 2 K
        return Cost(rows + extra, 2 * rows, {self.window: per_key}, {self.window: self.room(ctx).values()})

    def wishes(self, ctx: BuildContext) -> Wishes:
        return Wishes(self.rotary_dim, 2 * self.rotary_dim, self.heads_ != self.kv_heads, self.window)

    def room(self, ctx: BuildContext) -> Room:
        return Room(((self.kv_heads or 0, self.rotary_dim),) * 2, self.window)
