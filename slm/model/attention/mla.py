"""Multi-head latent attention: keys and values come out of one small latent vector per token, and only that is cached.

::

    q = W_qb norm(W_qa x)                       per head: nope_dim without and rope_dim with position
    c, k_rope = split(W_kva x);  c = norm(c)    one latent and one rotated key for all heads
    k = [W_k c ; rotate(k_rope)],  v = W_v c    per head

Training expands the latents. Decoding one token doesn't: since q_nope (W_k c) = (q_nope W_k) c, all heads attend to the
latents themselves as one shared key and value, and W_v is applied to what comes out.
"""

from __future__ import annotations

from typing import Self

import pydantic
import torch
from torch import Tensor, nn

from slm.cost.cost import Cost
from slm.model.attention.backends import Scores, attend
from slm.model.attention.base import AttentionPart, attention
from slm.model.attention.rotation import prepared
from slm.model.attention.scores import Wishes
from slm.model.cache import Room
from slm.model.norm import OptionalNormSlot
from slm.model.parts import BuildContext, refuse
from slm.model.sequence import Here


class LatentAttention(nn.Module):
    """See the module's text."""

    def __init__(self, part: "Latent", ctx: BuildContext) -> None:
        super().__init__()
        self.part = part
        dim, heads, rank = ctx.dim, part.heads or 0, part.kv_rank or 0
        kind, bias = part.latent_norm or ctx.model.norm, part.qkv_bias
        self.scale = part.scale_ * ctx.model.parametrization.attention_factor(ctx.model, part.key_dim)
        if part.q_rank:
            self.q_a, self.q_norm = nn.Linear(dim, part.q_rank, bias=bias), kind.build(part.q_rank)
            self.q_b = nn.Linear(part.q_rank, heads * part.key_dim, bias=False)
        else:
            self.q = nn.Linear(dim, heads * part.key_dim, bias=False)
        self.kv_a, self.kv_norm = nn.Linear(dim, rank + part.rope_dim, bias=bias), kind.build(rank)
        self.kv_b = nn.Linear(rank, heads * (part.nope_dim + part.v_dim), bias=False)
        self.o = nn.Linear(heads * part.v_dim, dim, bias=part.out_bias)

    def forward(self, x_BTD: Tensor, here: Here) -> Tensor:
        B, T, _ = x_BTD.shape
        part, encoding = self.part, here.encoding
        heads = part.heads or 0
        q = self.q_b(self.q_norm(self.q_a(x_BTD))) if part.q_rank else self.q(x_BTD)
        q_nope, q_rope = q.view(B, T, heads, -1).split((part.nope_dim, part.rope_dim), -1)
        c_BTR, k_rope = self.kv_a(x_BTD).split((part.kv_rank or 0, part.rope_dim), -1)
        q_nope, c_B1SR = q_nope.transpose(1, 2), self.kv_norm(c_BTR)[:, None]
        q_rope, k_rope_B1SR = prepared(q_rope, k_rope[:, :, None], encoding)
        if here.memory is not None:
            c_B1SR, k_rope_B1SR = here.memory.append(c_B1SR, k_rope_B1SR)
        scores = Scores(self.scale, part.window, part.softcap, encoding.slopes(heads, q))
        latent = here.memory is not None and T == 1
        mix = self._over_latents if latent else self._expanded
        out_BHTV = mix(q_nope, q_rope, c_B1SR, k_rope_B1SR, here, scores)
        return self.o(out_BHTV.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]

    def _expanded(
        self, q_nope: Tensor, q_rope: Tensor, c_B1SR: Tensor, k_rope: Tensor, here: Here, scores: Scores
    ) -> Tensor:
        part, heads = self.part, self.part.heads or 0
        B, _, S, _ = c_B1SR.shape
        kv_BHSK = self.kv_b(c_B1SR[:, 0]).view(B, S, heads, -1).transpose(1, 2)
        k_nope, v_BHSV = kv_BHSK.split((part.nope_dim, part.v_dim), -1)
        k_BHSK = torch.cat((k_nope, k_rope.expand(B, heads, S, part.rope_dim)), -1)
        return attend(torch.cat((q_nope, q_rope), -1), k_BHSK, v_BHSV, here.mask, scores, backend=here.backend)

    def _over_latents(
        self, q_nope: Tensor, q_rope: Tensor, c_B1SR: Tensor, k_rope: Tensor, here: Here, scores: Scores
    ) -> Tensor:
        part, heads = self.part, self.part.heads or 0
        w_k, w_v = self.kv_b.weight.view(heads, -1, part.kv_rank or 0).split((part.nope_dim, part.v_dim), 1)
        q_BHTR = torch.cat((q_nope @ w_k.to(q_nope.dtype), q_rope), -1)
        k_B1SR = torch.cat((c_B1SR, k_rope), -1)
        out_BHTR = attend(q_BHTR, k_B1SR, c_B1SR, here.mask, scores, backend=here.backend)
        return out_BHTR @ w_v.mT.to(out_BHTR.dtype)


@attention.register("mla", paper="DeepSeek-AI 2024 (DeepSeek-V2), arXiv 2405.04434")
class Latent(AttentionPart):
    """Multi-head latent attention: low-rank keys and values, of which only the latent is cached."""

    heads: int | None = pydantic.Field(None, gt=0)
    """Heads; by default one per 64 of width."""
    q_rank: int | None = pydantic.Field(None, ge=0)
    """Rank of the queries, half of the width by default; 0: full rank."""
    kv_rank: int | None = pydantic.Field(None, gt=0)
    """Width of the cached latent; a quarter of the width by default."""
    nope_dim: int = pydantic.Field(64, ge=0)
    """Width of each head's queries and keys without position."""
    rope_dim: int = pydantic.Field(32, gt=0)
    """Width of the queries with position, and of the key with position that all heads share."""
    v_dim: int = pydantic.Field(64, gt=0)
    """Width of each head's values."""
    scale: float | None = pydantic.Field(None, gt=0)
    """Factor on q k; 1 / sqrt(nope_dim + rope_dim) by default."""
    window: int | None = pydantic.Field(None, gt=0)
    """Tokens that a token sees, itself included; all by default."""
    softcap: float | None = pydantic.Field(None, gt=0)
    """cap tanh(score / cap)."""
    qkv_bias: bool = False
    """Biases on the projections down to the latents."""
    out_bias: bool = False
    """A bias on the output projection."""
    latent_norm: OptionalNormSlot = None
    """Norm of the latents; the model's kind by default."""

    def resolve(self, dim: int, layers: int) -> Self:
        q_rank = self.q_rank if self.q_rank is not None else max(1, dim // 2)
        heads = self.heads or max(1, dim // 64)
        if self.rope_dim % 2:
            raise refuse(self, f"rope_dim={self.rope_dim} must be even: positions turn pairs.")
        return self.with_(heads=heads, q_rank=q_rank, kv_rank=self.kv_rank or max(1, dim // 4))

    @property
    def key_dim(self) -> int:
        """Width of a head's query."""
        return self.nope_dim + self.rope_dim

    @property
    def scale_(self) -> float:
        return self.scale if self.scale is not None else self.key_dim**-0.5

    @property
    def rotary_dim(self) -> int:
        return self.rope_dim

    def build(self, ctx: BuildContext) -> nn.Module:
        return LatentAttention(self, ctx)

    def canonical(self) -> "Latent":
        """With the scale spelled out."""
        return self.with_(scale=self.scale_)

    def cost(self, ctx: BuildContext) -> Cost:
        heads, rank, q_rank, dim = self.heads or 0, self.kv_rank or 0, self.q_rank or 0, ctx.dim
        q = dim * q_rank + q_rank * heads * self.key_dim if q_rank else dim * heads * self.key_dim
        rows = q + dim * (rank + self.rope_dim) + rank * heads * (self.nope_dim + self.v_dim) + heads * self.v_dim * dim
        kind = self.latent_norm or ctx.model.norm
        extra = kind.params(rank) + (kind.params(q_rank) if q_rank else 0) + dim * self.out_bias
        extra += (q_rank + rank + self.rope_dim) * self.qkv_bias
        per_key = 2 * heads * (self.key_dim + self.v_dim)
        return Cost(rows + extra, 2 * rows, {self.window: per_key}, {self.window: self.room(ctx).values()})

    def wishes(self, ctx: BuildContext) -> Wishes:
        return Wishes(self.key_dim, self.v_dim, False, self.window, self.softcap is not None)

    def room(self, ctx: BuildContext) -> Room:
        return Room(((1, self.kv_rank or 0), (1, self.rope_dim)), self.window)
