"""The softmax family: multi-head attention and grouped queries."""

from __future__ import annotations

from typing import Self

import pydantic
from torch import Tensor, nn

from slm.cost.cost import Cost
from slm.model.attention.backends import attend
from slm.model.attention.base import AttentionPart, attention
from slm.model.parts import BuildContext, refuse
from slm.model.sequence import Sequence


class SoftmaxAttention(nn.Module):
    """Causal attention within documents; ``kv_heads`` key/value heads serve ``heads`` query heads."""

    def __init__(
        self, dim: int, heads: int, kv_heads: int, head_dim: int, q_norm: nn.Module | None, k_norm: nn.Module | None
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q = nn.Linear(dim, heads * head_dim, bias=False)
        self.k = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.v = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, dim, bias=False)
        self.q_norm, self.k_norm = q_norm, k_norm

    def forward(self, x_BTD: Tensor, sequence: Sequence, layer: int) -> Tensor:
        B, T, _ = x_BTD.shape
        q_BTHK = self.q(x_BTD).view(B, T, self.heads, self.head_dim)
        k_BTGK = self.k(x_BTD).view(B, T, self.kv_heads, self.head_dim)
        v_BGTK = self.v(x_BTD).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        q_BHTK, k_BGTK = sequence.rotate(q_BTHK.transpose(1, 2), k_BTGK.transpose(1, 2))
        if sequence.cache is not None:
            k_BGTK, v_BGTK = sequence.cache.append(layer, k_BGTK, v_BGTK)
        out_BHTK = attend(q_BHTK, k_BGTK, v_BGTK, sequence.mask, scale=self.head_dim**-0.5, backend=sequence.backend)
        return self.o(out_BHTK.transpose(1, 2).reshape(B, T, self.heads * self.head_dim))  # type: ignore[no-any-return]


class _Softmax(AttentionPart):
    """What multi-head and grouped-query attention have in common."""

    heads: int | None = pydantic.Field(None, gt=0)
    """Query heads; by default one per 64 of width."""
    head_dim: int | None = pydantic.Field(None, gt=0)
    """Width of a head; by default dim / heads."""
    qk_norm: bool = False
    """Normalise each head's queries and keys before the position encoding (Henry et al. 2020, arXiv 2010.04245)."""

    @property
    def groups(self) -> int:
        """Key/value heads."""
        raise NotImplementedError

    def _resolve_heads(self, dim: int) -> dict[str, int]:
        heads = self.heads or max(1, dim // 64)
        if self.head_dim is None and dim % heads:
            raise refuse(
                self, f"heads={heads} doesn't divide model.dim={dim}. Choose a divisor of {dim}, or set head_dim."
            )
        return {"heads": heads, "head_dim": self.head_dim or dim // heads}

    def build(self, ctx: BuildContext) -> nn.Module:
        norms = [ctx.norm(self.rotary_dim) if self.qk_norm else None for _ in range(2)]
        return SoftmaxAttention(ctx.dim, self.heads or 0, self.groups, self.rotary_dim, *norms)

    def cost(self, ctx: BuildContext) -> Cost:
        heads, width = self.heads or 0, self.rotary_dim
        matrices = ctx.dim * width * (2 * heads + 2 * self.groups)
        norms = 2 * ctx.model.norm.params(width) if self.qk_norm else 0
        return Cost(matrices + norms, 2 * matrices, 4 * heads * width, 2 * self.groups * width)

    @property
    def rotary_dim(self) -> int:
        return self.head_dim or 0

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        return self.groups, self.rotary_dim, self.rotary_dim


@attention.register("gqa", paper="Ainslie et al. 2023, arXiv 2305.13245")
class GroupedQuery(_Softmax):
    """Grouped-query attention: several query heads share a key/value head (kv_heads=1 is multi-query)."""

    kv_heads: int | None = pydantic.Field(None, gt=0)
    """Key/value heads, a divisor of ``heads``; by default a third, or the nearest divisor below."""

    def resolve(self, dim: int, layers: int) -> Self:
        shape = self._resolve_heads(dim)
        heads = shape["heads"]
        kv_heads = self.kv_heads or max(d for d in range(1, max(1, heads // 3) + 1) if heads % d == 0)
        if kv_heads > heads:
            raise refuse(
                self, f"kv_heads={kv_heads} is more than heads={heads}. A key/value head serves one query head or more."
            )
        if heads % kv_heads:
            raise refuse(self, f"kv_heads={kv_heads} doesn't divide heads={heads}. Choose a divisor of {heads}.")
        return self.with_(**shape, kv_heads=kv_heads)

    @property
    def groups(self) -> int:
        return self.kv_heads or 0


@attention.register("mha", paper="Vaswani et al. 2017, arXiv 1706.03762")
class MultiHead(_Softmax):
    """Multi-head attention: every query head has its own keys and values."""

    def resolve(self, dim: int, layers: int) -> Self:
        return self.with_(**self._resolve_heads(dim))

    @property
    def groups(self) -> int:
        return self.heads or 0
