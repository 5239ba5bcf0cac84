"""Linear layer and cross entropy in one, without keeping the logits.

For small models with large vocabularies the logits are the biggest tensor of the step: N x V in fp32, and
as much again for their gradient. But the loss is a sum over rows, so it can be taken a block of rows at a
time. With l = x W^T, lse = log sum exp l and y the target,

    nll = lse - l_y                      d nll / d l = softmax(l) - onehot(y)
    z   = lse^2   (z-loss)               d z   / d l = 2 lse softmax(l)

and dX = dL W, dW = dL^T X need only the block at hand. Whenever a gradient is wanted, the forward pass
computes dX and dW right away and keeps those: N x D and V x D instead of N x V. The block is chosen so that
it stays in cache, which on a CPU also makes it faster than the plain computation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 8 << 20
"""fp32 logits held at a time."""


def linear_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    valid: int | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Sum over rows of cross entropy plus ``z_loss`` x lse^2, and the cross entropy alone.

    Args:
        x_ND: hidden states. Under autocast they are multiplied in autocast's dtype; sums are fp32.
        weight_VD: output embedding.
        targets_N: int64 ids; rows equal to ``ignore_index`` count nothing.
        z_loss: weight of the squared log-partition (PaLM, arXiv 2204.02311, section 5).
        bias: (V,), added to the scaled products.
        logit_scale: factor on x W^T.
        softcap: logits become cap tanh(logit / cap) (Gemma 2, arXiv 2408.00118).
        valid: rows of ``weight_VD`` that are real; the others are padding and score -inf.
        block_bytes: memory for the fp32 logits of one block of rows.

    Returns:
        ``(loss, nll)``, fp32 scalars (fp64 for fp64 inputs); ``nll`` carries no gradient.
    """
    device = x_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype
    rows = max(16, block_bytes // (4 * weight_VD.shape[0]))
    head = _Head(logit_scale, softcap, valid)
    # Asked here: inside of a Function gradients are always off, and its needs_input_grad doesn't know of no_grad.
    wants = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x_ND, weight_VD, bias))
    return _LinearCrossEntropy.apply(x_ND, weight_VD, bias, targets_N, ignore_index, z_loss, head, rows, dtype, wants)  # type: ignore[no-any-return]


def reference(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    valid: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same from torch's own operations: the oracle of the tests."""
    logits_NV = torch.nn.functional.linear(x_ND, weight_VD) * logit_scale
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))  # fp64 stays fp64
    if bias is not None:
        logits_NV = logits_NV + bias
    if softcap is not None:
        logits_NV = softcap * (logits_NV / softcap).tanh()
    logits_NV = logits_NV[:, :valid]
    nll = torch.nn.functional.cross_entropy(logits_NV, targets_N, ignore_index=ignore_index, reduction="sum")
    lse_N = logits_NV.logsumexp(-1)[targets_N != ignore_index]
    return nll + z_loss * lse_N.square().sum(), nll.detach()


@dataclass(frozen=True)
class _Head:
    """From products to logits, and the way back for their gradient; both in place."""

    scale: float
    softcap: float | None
    valid: int | None

    def logits(self, product_BV: Tensor, bias: Tensor | None) -> Tensor:
        if self.scale != 1.0:
            product_BV.mul_(self.scale)
        if bias is not None:
            product_BV.add_(bias)
        if self.softcap is not None:
            product_BV.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.valid is not None:
            product_BV[:, self.valid :] = float("-inf")
        return product_BV

    def slope(self, logits_BV: Tensor) -> Tensor | None:
        """d logit / d (scaled product + bias); None where it is 1."""
        if self.softcap is None:
            return None
        return (1 - (logits_BV / self.softcap).square()).nan_to_num_(0.0, 0.0, 0.0)  # padding is at -inf


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        bias: Tensor | None,
        targets_N: Tensor,
        ignore_index: int,
        z_loss: float,
        head: _Head,
        rows: int,
        dtype: torch.dtype,
        wants: bool,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(x_ND.device.type, enabled=False):
            wide = torch.promote_types(dtype, torch.float32)  # fp64 stays fp64
            w_VD, bias_V = weight_VD.to(dtype), None if bias is None else bias.to(wide)
            nll, z = x_ND.new_zeros((), dtype=wide), x_ND.new_zeros((), dtype=wide)
            dx_ND = torch.empty_like(x_ND) if wants else None
            dw_VD = torch.zeros_like(weight_VD, dtype=wide) if wants else None
            db_V = torch.zeros_like(bias_V) if wants and bias_V is not None else None
            for start in range(0, x_ND.shape[0], rows):
                block = slice(start, start + rows)
                x_BD, y_B = x_ND[block].to(dtype), targets_N[block, None]
                counted_B = y_B != ignore_index
                y_B = y_B.where(counted_B, 0)
                logits_BV = head.logits((x_BD @ w_VD.mT).to(wide), bias_V)
                lse_B = logits_BV.logsumexp(-1, keepdim=True)
                nll += ((lse_B - logits_BV.gather(1, y_B)) * counted_B).sum()
                z += (lse_B.square() * counted_B).sum()
                if dx_ND is None or dw_VD is None:
                    continue
                slope_BV = head.slope(logits_BV)
                grad_BV = logits_BV.sub_(lse_B).exp_()  # softmax, in the logits' memory
                if z_loss:
                    grad_BV.mul_(1 + 2 * z_loss * lse_B)
                grad_BV.scatter_add_(1, y_B, grad_BV.new_full((1, 1), -1.0).expand_as(y_B))
                if slope_BV is not None:
                    grad_BV.mul_(slope_BV)
                if not bool_all(counted_B):
                    grad_BV.mul_(counted_B)
                if db_V is not None:
                    db_V += grad_BV.sum(0)
                if head.scale != 1.0:
                    grad_BV.mul_(head.scale)
                g_BV = grad_BV.to(dtype)
                dx_ND[block] = g_BV @ w_VD
                dw_VD += g_BV.mT @ x_BD
            if dx_ND is not None and dw_VD is not None:
                saved = [dx_ND, dw_VD.to(weight_VD.dtype)]
                ctx.save_for_backward(*saved, *([] if db_V is None or bias is None else [db_V.to(bias.dtype)]))
            loss = nll + z_loss * z
            ctx.mark_non_differentiable(nll)
            return loss, nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [saved * grads[0].to(saved.dtype) for saved in ctx.saved_tensors]
        return (*scaled, *[None] * (10 - len(scaled)))


def bool_all(mask: Tensor) -> bool:
    """Whether all are true where asking is free (CPU); False on an accelerator, where it would make the host wait."""
    return mask.device.type == "cpu" and bool(mask.all())
