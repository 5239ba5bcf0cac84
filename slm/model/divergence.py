"""How far a decoder's predictions are from a teacher's, without keeping either model's logits.

Over all tokens the sum is `slm_kernels.linear_kl`'s where it can be. The rest is done here: heads with a bias or a cap on
the logits, and *coarse* distributions, which tell k tokens apart and take the others together. With S the teacher's k most
probable tokens, z the logits and T the temperature,

    p(i) = exp(z_i / T) / sum_j exp(z_j / T)    for i in S
    p(rest) = sum over j not in S of p(j)       the further outcome

for teacher and student alike, and the divergence is that of these k + 1 outcomes. Putting outcomes together never makes a
KL or Jensen-Shannon divergence larger (the log-sum inequality: Cover & Thomas, Elements of Information Theory, theorem
2.7.1), so this is a lower bound of the full one, which it reaches as k grows. Unlike top-k probabilities scaled up to a sum
of one, it doesn't teach the student that the rest is impossible: the student's mass on the rest is drawn to the teacher's.
How that mass is spread within the rest is left to the text (Anshumann et al. 2025, arXiv 2503.16870, on what is lost).

Memory: the logits of one chunk of rows, a few times over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from slm.model.embedding import Embedding
from slm_kernels import linear_kl
from slm_kernels.linear_cross_entropy import chunk_rows
from slm_kernels.linear_kl import Kind as KernelKind
from slm_kernels.matmul import add_product_, no_autocast, product_dtype

Kind = Literal["forward", "reverse", "js"]
KINDS: dict[Kind, KernelKind] = {"forward": "forward", "reverse": "reverse", "js": "jsd"}
"""What `slm_kernels.linear_kl` calls them."""
COPIES = 6
"""Tensors as large as a chunk's fp32 logits that are alive at once."""


@dataclass(frozen=True)
class Head:
    """How hidden states become logits. ``scale`` is a factor on the products, ``softcap`` a cap on the logits."""

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, embedding: Embedding) -> "Head":
        """A model's, over its real tokens."""
        weight, V = embedding.head_weight, embedding.vocab
        bias: Tensor | None = embedding.head_bias
        if len(weight) != V:  # rows that only pad
            weight, bias = weight[:V], None if bias is None else bias[:V]
        return cls(weight, bias, embedding.logit_scale, embedding.softcap)

    @property
    def linear(self) -> bool:
        """Whether logits are plain products."""
        return self.bias_V is None and self.softcap is None

    def logits(self, raw_CV: Tensor, bias_V: Tensor | None) -> Tensor:
        """Logits from products."""
        z_CV = raw_CV if self.scale == 1.0 else raw_CV * self.scale
        z_CV = z_CV if bias_V is None else z_CV + bias_V
        return z_CV if self.softcap is None else self.softcap * (z_CV / self.softcap).tanh()


class FromModel(NamedTuple):
    """A teacher that runs: what its head is multiplied with, (N, E), and the head."""

    features_NE: Tensor
    head: Head


class Outcomes(NamedTuple):
    """A teacher's coarse distributions: k tokens, (N, k) int64, and log-probabilities of these and of the rest, (N, k + 1)."""

    ids_NK: Tensor
    logq_NM: Tensor


def teacher_divergence(
    student: Head,
    x_ND: Tensor,
    teacher: FromModel | Outcomes,
    counted_N: Tensor,
    *,
    kind: Kind = "forward",
    temperature: float = 1.0,
    top_k: int | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Sum over counted rows of the divergence of teacher and student, in nats; gradients go to ``x`` and the student's head.

    Args:
        x_ND: what the student's head is multiplied with.
        teacher: a model's hidden states, or outcomes that were made with the same temperature.
        counted_N: bool; other rows count nothing.
        top_k: with a model as teacher, outcomes to tell apart; None: all tokens.
        chunk_bytes: memory for the logits of a chunk of rows.
    """
    if isinstance(teacher, FromModel) and top_k is None and student.linear and teacher.head.linear:
        return linear_kl(
            _scaled(x_ND, student.scale),
            student.weight_VD,
            _scaled(teacher.features_NE, teacher.head.scale),
            teacher.head.weight_VD,
            kind=KINDS[kind],
            temperature=temperature,
            weights_N=counted_N.float(),
            chunk_bytes=chunk_bytes,
        )
    device = x_ND.device.type
    step = chunk_rows(len(x_ND), 4 * COPIES * len(student.weight_VD), chunk_bytes, device)

    def rows_of(z_CV: Tensor, block: slice) -> Tensor:
        z_CV = z_CV / temperature
        if isinstance(teacher, FromModel):
            t_CV = teacher_logits(teacher.head, teacher.features_NE[block]) / temperature
            if top_k is None:
                return between(z_CV.log_softmax(-1), t_CV.log_softmax(-1), kind)
            known = outcomes(t_CV, top_k)
        else:
            known = Outcomes(teacher.ids_NK[block], teacher.logq_NM[block])
        return between(coarse(z_CV, known.ids_NK), known.logq_NM.to(z_CV.dtype), kind)

    return _in_chunks(x_ND, student, counted_N, rows_of, step)


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else x * factor


@torch.no_grad()
def teacher_logits(head: Head, x_CE: Tensor) -> Tensor:
    """A teacher's logits of some rows, fp32 (fp64 for fp64 inputs)."""
    dtype = product_dtype(x_CE)
    with no_autocast(x_CE):
        raw_CV = x_CE.to(dtype) @ head.weight_VD.to(dtype).mT
        return head.logits(raw_CV.to(torch.promote_types(dtype, torch.float32)), head.bias_V)


def outcomes(logits_CV: Tensor, top_k: int) -> Outcomes:
    """The coarse distribution of logits that are divided by the temperature already; most probable first."""
    ids_CK = logits_CV.topk(top_k, -1).indices
    return Outcomes(ids_CK, coarse(logits_CV, ids_CK))


def coarse(logits_CV: Tensor, ids_CK: Tensor) -> Tensor:
    """Log-probabilities (C, k + 1) of the given tokens and, last, of all others together."""
    lse_C1 = logits_CV.logsumexp(-1, keepdim=True)
    rest_C1 = logits_CV.scatter(1, ids_CK, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat((logits_CV.gather(1, ids_CK), rest_C1), 1) - lse_C1


def between(logp_CM: Tensor, logq_CM: Tensor, kind: Kind) -> Tensor:
    """Divergence of teacher (q) and student (p) per row, from log-probabilities."""
    p_CM, q_CM = logp_CM.exp(), logq_CM.exp()
    if kind == "forward":
        return torch.where(q_CM > 0, q_CM * (logq_CM - logp_CM), 0.0).sum(-1)
    if kind == "reverse":
        return (p_CM * (logp_CM - logq_CM)).sum(-1)
    logm_CM = torch.logaddexp(logp_CM, logq_CM) - math.log(2.0)
    q_part = torch.where(q_CM > 0, q_CM * (logq_CM - logm_CM), 0.0)
    return 0.5 * (q_part + p_CM * (logp_CM - logm_CM)).sum(-1)


RowsOf = Callable[[Tensor, slice], Tensor]
"""Losses (C,) from a chunk's logits (C, V), which want a gradient, and the rows that they are of."""


@torch.compiler.disable  # takes gradients inside, which a graph can't hold; what stands around is compiled
def _in_chunks(x_ND: Tensor, head: Head, counted_N: Tensor, rows_of: RowsOf, step: int) -> Tensor:
    return _Chunks.apply(x_ND, head.weight_VD, head.bias_V, head, counted_N, rows_of, step)  # type: ignore[no-any-return,no-untyped-call]


class _Chunks(torch.autograd.Function):
    """Sum of losses of rows of logits. As in `slm_kernels.linear_cross_entropy` the gradients are computed chunk by chunk in the
    forward pass and multiplied by the incoming scalar in the backward pass; here autograd finds them over a chunk's logits."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        counted_N: Tensor,
        rows_of: RowsOf,
        step: int,
    ) -> Tensor:
        dtype = product_dtype(x_ND)
        wide = torch.promote_types(dtype, torch.float32)
        dx_ND, dw_VD = torch.empty_like(x_ND), x_ND.new_zeros(weight_VD.shape, dtype=wide)
        db_V = None if bias_V is None else x_ND.new_zeros(bias_V.shape, dtype=wide)
        total = x_ND.new_zeros((), dtype=wide)
        with no_autocast(x_ND):
            w_VD = weight_VD.to(dtype)
            for start in range(0, len(x_ND), step):
                block = slice(start, start + step)
                x_CD = x_ND[block].to(dtype)
                raw_CV = (x_CD @ w_VD.mT).to(wide)
                with torch.enable_grad():
                    raw_CV.requires_grad_()
                    bias = None if bias_V is None else bias_V.detach().to(wide).requires_grad_()
                    loss = (rows_of(head.logits(raw_CV, bias), block) * counted_N[block]).sum()
                    grads = torch.autograd.grad(loss, [raw_CV] if bias is None else [raw_CV, bias])
                total += loss.detach()
                g_CV = grads[0].to(dtype)
                dx_ND[block] = g_CV @ w_VD
                add_product_(dw_VD, g_CV.mT, x_CD)
                if db_V is not None:
                    db_V += grads[1]
        ctx.save_for_backward(dx_ND, dw_VD, db_V)
        ctx.dtypes = weight_VD.dtype, None if bias_V is None else bias_V.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        dx_ND, dw_VD, db_V = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        (up,) = upstream
        db_V = None if db_V is None else (db_V * up).to(bias_dtype)
        return dx_ND * up.to(dx_ND.dtype), (dw_VD * up).to(weight_dtype), db_V, None, None, None, None
