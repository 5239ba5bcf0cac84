"""The softmax family: multi-head, grouped-query and multi-query attention, with the options people argue about."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from slm.cost.cost import Cost
from slm.model.attention.backends import Scores, attend
from slm.model.attention.base import AttentionPart, attention
from slm.model.attention.rotation import prepared
from slm.model.attention.scores import Wishes
from slm.model.attention.values import ValueMix, value_mix_params
from slm.model.axes import Axes
from slm.model.cache import Room
from slm.model.norm import OptionalNormSlot
from slm.model.parts import BuildContext, refuse
from slm.model.sequence import Here

QKNorm = Literal["none", "head", "each", "full"]


class SoftmaxAttention(nn.Module):
    """Causal attention within documents; ``kv_heads`` key/value heads serve ``heads`` query heads."""

    param_classes = {"sinks": "scalar"}
    starts = {"sinks": 0.0}

    def __init__(self, part: "GroupedQuery", ctx: BuildContext) -> None:
        super().__init__()
        self.part, dim = part, ctx.dim
        self.heads, self.kv_heads, self.head_dim = part.heads_, part.groups, part.rotary_dim
        self.q = nn.Linear(dim, self.heads * self.head_dim, bias=part.qkv_bias)
        self.k = nn.Linear(dim, self.kv_heads * self.head_dim, bias=part.qkv_bias)
        self.v = nn.Linear(dim, self.kv_heads * self.head_dim, bias=part.qkv_bias)
        self.o = nn.Linear(self.heads * self.head_dim, dim, bias=part.out_bias)
        self.q_norm, self.k_norm = part.build_qk_norms(ctx)
        gates = {"none": 0, "head": self.heads, "element": self.heads * self.head_dim}[part.gate]
        self.gate = nn.Linear(dim, gates, bias=False) if gates else None
        self.sinks = nn.Parameter(torch.empty(self.heads)) if part.sinks else None
        self.values = (
            ValueMix(part.value_mix, ctx.model.vocab_, self.kv_heads, self.head_dim) if part.value_mix else None
        )
        self.conv = ctx.model.conv.build("B", part.qkv_width)
        self.scale = part.scale_ * ctx.model.parametrization.attention_factor(ctx.model, self.head_dim)

    @property
    def axes(self) -> dict[str, Axes]:
        """See `slm.model.axes`."""
        table: dict[str, Axes] = {"o.weight": ("dim", "q"), "o.bias": ("dim",), "sinks": ("heads",)}
        for name, axis in (("q", "q"), ("k", "kv"), ("v", "kv")):
            table |= {f"{name}.weight": (axis, "dim"), f"{name}.bias": (axis,)}
        table["gate.weight"] = ("heads" if self.part.gate == "head" else "q", "dim")
        for name, wide, each in (("q_norm", "q", "heads"), ("k_norm", "kv", "groups")):
            kinds: dict[str, Axes] = {"head": (None,), "each": (each, None), "full": (wide,)}
            own = kinds.get(self.part.qk_norm, ())
            table |= {f"{name}.weight": own, f"{name}.bias": own, f"{name}.alpha": ()}
        return table

    def forward(self, x_BTD: Tensor, here: Here) -> Tensor:
        B, T, _ = x_BTD.shape
        q_BHTK, k_BGTK, v_BGTK = self._project(x_BTD, here)
        if self.values is not None:
            v_BGTK = self.values(v_BGTK, here)
        if here.memory is not None:
            k_BGTK, v_BGTK = here.memory.append(k_BGTK, v_BGTK)
        slopes_H = here.encoding.slopes(self.heads, q_BHTK)
        scores = Scores(self.scale, self.part.window, self.part.softcap, slopes_H, self.sinks)
        out_BHTK = attend(q_BHTK, k_BGTK, v_BGTK, here.mask, scores, backend=here.backend)
        out_BTHK = out_BHTK.transpose(1, 2)
        if self.gate is not None:
            out_BTHK = out_BTHK * self.gate(x_BTD).sigmoid().view(B, T, self.heads, -1)
        return self.o(out_BTHK.reshape(B, T, self.heads * self.head_dim))  # type: ignore[no-any-return]

    def _project(self, x_BTD: Tensor, here: Here) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, T, head_dim), normalised and turned by their positions."""
        B, T, _ = x_BTD.shape
        q, k, v = self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)
        if self.conv is not None:
            q, k, v = self.conv(torch.cat((q, k, v), -1), here).split((q.shape[-1], k.shape[-1], v.shape[-1]), -1)
        if (clip := self.part.clip_qkv) is not None:
            q, k, v = (t.clamp(-clip, clip) for t in (q, k, v))
        full = self.part.qk_norm == "full"
        if full and self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q_BTHK, k_BTGK = q.view(B, T, self.heads, self.head_dim), k.view(B, T, self.kv_heads, self.head_dim)
        early = not full and not self.part.qk_norm_after_position
        norms = (self.q_norm, self.k_norm) if early else ()
        q_BHTK, k_BGTK = prepared(q_BTHK, k_BTGK, here.encoding, *norms)
        if not full and not early and self.q_norm is not None and self.k_norm is not None:
            q_BHTK, k_BGTK = (
                n(t.transpose(1, 2)).transpose(1, 2) for n, t in ((self.q_norm, q_BHTK), (self.k_norm, k_BGTK))
            )
        if self.part.log_n is not None:
            q_BHTK = q_BHTK * log_n_factor(here.positions_BT, self.part.log_n).to(q_BHTK.dtype)
        return q_BHTK, k_BGTK, v.view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)


def log_n_factor(positions_BT: Tensor, trained: int) -> Tensor:
    """max(1, log_trained(position + 1)), (B or 1, 1, T, 1): keeps entropy level as contexts grow (Su 2021; Qwen-1)."""
    return ((positions_BT + 1).float().log() / math.log(trained)).clamp(min=1)[:, None, :, None]


class SoftmaxPart(AttentionPart):
    """What all of softmax attention has in common: heads, and how a score comes about."""

    heads: int | None = pydantic.Field(None, gt=0)
    """Query heads; by default one per 64 of width."""
    head_dim: int | None = pydantic.Field(None, gt=0)
    """Width of a head; by default dim / heads."""
    scale: float | None = pydantic.Field(None, gt=0)
    """Factor on q k; 1 / sqrt(head_dim) by default."""
    window: int | None = pydantic.Field(None, gt=0)
    """Tokens that a token sees, itself included; all by default (Beltagy et al. 2020, arXiv 2004.05150)."""
    qkv_bias: bool = False
    """Biases on queries, keys and values."""
    out_bias: bool = False
    """A bias on the output projection."""

    @property
    def heads_(self) -> int:
        return self.heads or 0

    @property
    def rotary_dim(self) -> int:
        return self.head_dim or 0

    @property
    def scale_(self) -> float:
        return self.scale if self.scale is not None else self.rotary_dim**-0.5

    def resolve_heads(self, dim: int) -> dict[str, int]:
        """``heads`` and ``head_dim`` from the width."""
        heads = self.heads or max(1, dim // 64)
        if self.head_dim is None and dim % heads:
            raise refuse(
                self, f"heads={heads} doesn't divide model.dim={dim}. Choose a divisor of {dim}, or set head_dim."
            )
        return {"heads": heads, "head_dim": self.head_dim or dim // heads}

    def resolve_groups(self, heads: int, kv_heads: int | None) -> int:
        """Key/value heads: a divisor of ``heads``, by default a third or the nearest below."""
        found = kv_heads or max(d for d in range(1, max(1, heads // 3) + 1) if heads % d == 0)
        if found > heads:
            raise refuse(
                self, f"kv_heads={found} is more than heads={heads}. A key/value head serves one query head or more."
            )
        if heads % found:
            raise refuse(self, f"kv_heads={found} doesn't divide heads={heads}. Choose a divisor of {heads}.")
        return found


class _Options(SoftmaxPart):
    """Options of the family."""

    qk_norm: QKNorm = "none"
    """Normalise queries and keys: head (each head, one gain for all), each (each head, a gain of its own), full (the whole
    width) (Henry et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv 2302.05442)."""
    qk_norm_kind: OptionalNormSlot = None
    """The norm; the model's by default."""
    qk_norm_after_position: bool = False
    """Normalise after the position encoding (HunYuan, nanochat)."""
    clip_qkv: float | None = pydantic.Field(None, gt=0)
    """Clamp queries, keys and values to +- this (MPT, DBRX, OLMo)."""
    softcap: float | None = pydantic.Field(None, gt=0)
    """cap tanh(score / cap) (Gemma 2, arXiv 2408.00118)."""
    gate: Literal["none", "head", "element"] = "none"
    """Sigmoid gate on the output, per head or per number (Qiu et al. 2025, arXiv 2505.06708)."""
    sinks: bool = False
    """A learned logit per head that takes attention and gives no value (gpt-oss; Xiao et al. 2023, arXiv 2309.17453)."""
    value_mix: Literal["first", "embedding"] | None = None
    """first: mix in the first layer's values (Zhou et al. 2024, arXiv 2410.17897); embedding: a learned value per token."""
    log_n: int | None = pydantic.Field(None, gt=1)
    """Past this length queries grow with the logarithm of the position."""

    @pydantic.field_validator("qk_norm", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        return {True: "head", False: "none"}.get(value, value) if isinstance(value, bool) else value

    @property
    def groups(self) -> int:
        """Key/value heads."""
        raise NotImplementedError

    @property
    def qkv_width(self) -> int:
        return (self.heads_ + 2 * self.groups) * self.rotary_dim

    def check(self, ctx: BuildContext) -> None:
        if self.qk_norm == "full" and self.qk_norm_after_position:
            raise refuse(
                self,
                "qk_norm=full spans the heads, which the position encoding treats one by one: it can't come after.",
            )
        first = next(
            (
                c.attention
                for c in ctx.model.contexts
                if isinstance(c.attention, _Options) and c.attention.value_mix == "first"
            ),
            self,
        )
        if self.value_mix == "first" and (self.groups, self.head_dim) != (first.groups, first.head_dim):
            raise refuse(
                self,
                f"value_mix=first needs the first layer's values in this layer's shape, but they are {first.groups} heads of "
                f"{first.head_dim} and here {self.groups} of {self.head_dim}.",
            )

    def build(self, ctx: BuildContext) -> nn.Module:
        return SoftmaxAttention(self.canonical(), ctx)

    def canonical(self) -> "GroupedQuery":
        """Grouped queries, with the scale spelled out."""
        return GroupedQuery(**dict(self) | {"kv_heads": self.groups, "scale": self.scale_})

    def build_qk_norms(self, ctx: BuildContext) -> tuple[nn.Module | None, nn.Module | None]:
        """Norms of queries and keys."""
        if self.qk_norm == "none":
            return None, None
        kind, width = self.qk_norm_kind or ctx.model.norm, self.rotary_dim
        if self.qk_norm == "full":
            return kind.build(self.heads_ * width), kind.build(self.groups * width)
        each = self.qk_norm == "each"
        return kind.build(width, self.heads_ if each else None), kind.build(width, self.groups if each else None)

    def cost(self, ctx: BuildContext) -> Cost:
        heads, groups, width = self.heads_, self.groups, self.rotary_dim
        rows = ctx.dim * width * (2 * heads + 2 * groups)
        rows += ctx.dim * {"none": 0, "head": heads, "element": heads * width}[self.gate]
        extra = self._norm_params(ctx) + (heads + 2 * groups) * width * self.qkv_bias + ctx.dim * self.out_bias
        extra += heads * self.sinks + value_mix_params(self.value_mix, ctx.model.vocab_, groups * width)
        kept = {self.window: self.room(ctx).values()}
        return Cost(rows + extra, 2 * rows, {self.window: 4 * heads * width}, kept)

    def _norm_params(self, ctx: BuildContext) -> int:
        kind, width = self.qk_norm_kind or ctx.model.norm, self.rotary_dim
        both = self.heads_ + self.groups
        if self.qk_norm == "full":
            return kind.params(self.heads_ * width) + kind.params(self.groups * width)
        if self.qk_norm == "each":
            return sum(sum(p.numel() for p in n.parameters()) for n in self.build_qk_norms(ctx) if n is not None)
        return 2 * kind.params(width) if self.qk_norm == "head" and both else 0

    def wishes(self, ctx: BuildContext) -> Wishes:
        width, grouped = self.rotary_dim, self.heads_ != self.groups
        return Wishes(width, width, grouped, self.window, self.softcap is not None, self.sinks)

    def room(self, ctx: BuildContext) -> Room:
        return Room(((self.groups, self.rotary_dim),) * 2, self.window)


@attention.register("gqa", paper="Ainslie et al. 2023, arXiv 2305.13245")
class GroupedQuery(_Options):
    """Grouped-query attention: several query heads share a key/value head (kv_heads=1 is multi-query)."""

    kv_heads: int | None = pydantic.Field(None, gt=0)
    """Key/value heads, a divisor of ``heads``; by default a third, or the nearest divisor below."""

    def resolve(self, dim: int, layers: int) -> Self:
        shape = self.resolve_heads(dim)
        return self.with_(**shape, kv_heads=self.resolve_groups(shape["heads"], self.kv_heads))

    def narrowed(self, heads: int, kv_heads: int | None) -> Self:
        return self.with_(heads=heads, kv_heads=self.resolve_groups(heads, kv_heads or self.kv_heads))

    @property
    def groups(self) -> int:
        return self.kv_heads or 0


@attention.register("mha", paper="Vaswani et al. 2017, arXiv 1706.03762")
class MultiHead(_Options):
    """Multi-head attention: every query head has its own keys and values."""

    def resolve(self, dim: int, layers: int) -> Self:
        return self.with_(**self.resolve_heads(dim))

    def narrowed(self, heads: int, kv_heads: int | None) -> Self:
        if kv_heads not in (None, heads):
            raise refuse(self, f"kv_heads={kv_heads} with heads={heads}: every query head has its own keys and values.")
        return self.with_(heads=heads)

    @property
    def groups(self) -> int:
        return self.heads or 0


@attention.register("mqa", paper="Shazeer 2019, arXiv 1911.02150")
class MultiQuery(_Options):
    """Multi-query attention: one key/value head serves all query heads."""

    def resolve(self, dim: int, layers: int) -> Self:
        return self.with_(**self.resolve_heads(dim))

    def narrowed(self, heads: int, kv_heads: int | None) -> Self:
        if kv_heads not in (None, 1):
            raise refuse(self, f"kv_heads={kv_heads} with heads={heads}: one key/value head serves all.")
        return self.with_(heads=heads)

    @property
    def groups(self) -> int:
        return 1
