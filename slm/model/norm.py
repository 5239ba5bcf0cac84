"""Normalisation. Statistics are fp32 whatever the input's precision (fp64 stays fp64)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slm.config.registry import Registry
from slm.cost.cost import Cost
from slm.model.parts import BuildContext, ModelPart
from slm_kernels import fused, rms_norm
from slm_kernels.matmul import no_autocast

Gain = Literal["plain", "one_plus", "none"]


class NormPart(ModelPart):
    """A normalisation over the last dimension."""

    def build(self, width: int, heads: int | None = None) -> nn.Module:
        """A norm over ``width``. With ``heads`` each head has gains of its own: input (..., heads, width)."""
        raise NotImplementedError

    def params(self, width: int) -> int:
        """Parameters of one norm of this width."""
        raise NotImplementedError

    def cost(self, ctx: BuildContext) -> Cost:
        return Cost(params=self.params(ctx.dim))


norm = Registry("norm", NormPart)
NormSlot = Annotated[NormPart, norm.field()]
OptionalNormSlot = Annotated[NormPart | None, norm.field(optional=True)]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class Norm(nn.Module):
    """Gain and bias around a statistic. ``gain`` "one_plus" stores w - 1 (Gemma, Nemotron), so that decay pulls to 1."""

    param_classes = {"weight": "norm", "bias": "bias"}

    def __init__(self, width: int, eps: float, gain: Gain, bias: bool, heads: int | None) -> None:
        super().__init__()
        shape = (width,) if heads is None else (heads, width)
        self.per_head = heads is not None
        self.width, self.eps, self.one_plus = width, eps, gain == "one_plus"
        self.weight = None if gain == "none" else nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape)) if bias else None
        self.starts = {"weight": 0.0 if self.one_plus else 1.0}

    def normalise(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The normalised input times ``weight`` plus ``bias``, both (width,) or None."""
        raise NotImplementedError

    def size(self, x: Tensor) -> Tensor:
        """The statistic that vectors (..., width) are divided by, without eps, (...,)."""
        raise NotImplementedError

    def rescale_(self, factor: float) -> None:
        """Multiply the gain, if there is one."""
        if self.weight is not None:
            with torch.no_grad():
                self.weight.copy_((1 + self.weight) * factor - 1 if self.one_plus else self.weight * factor)

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        weight = None if self.weight is None else _wide(self.weight)
        bias = None if self.bias is None else _wide(self.bias)
        if weight is not None and self.one_plus:
            weight = 1 + weight
        if not self.per_head:
            return self.normalise(wide, weight, bias).to(x.dtype)
        y = self.normalise(wide, None, None)  # gains per head: after the fused operation
        y = y if weight is None else y * weight
        return (y if bias is None else y + bias).to(x.dtype)


class RMSNorm(Norm):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def forward(self, x: Tensor) -> Tensor:
        offset = float(self.one_plus)
        if not self.per_head and fused("rms_norm", x, self.weight, self.eps, offset, None, None):
            return rms_norm(x, self.weight, self.eps, offset=offset)
        return super().forward(x)

    def normalise(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if x.device.type == "cpu":
            return _RMSNormOnCPU.apply(x, weight, self.eps)  # type: ignore[no-any-return]
        return F.rms_norm(x, (self.width,), weight, self.eps)

    def size(self, x: Tensor) -> Tensor:
        return _wide(x).square().mean(-1).sqrt()


class _RMSNormOnCPU(torch.autograd.Function):
    """`F.rms_norm` in a third of the time, where torch makes it of a dozen plain operations, each through memory.

    With r = 1 / sqrt(mean(x^2) + eps), y = r x w and, summed over the width H,
    dx = r (w dy - r^2 / H sum(w x dy) x), dw = sum of r x dy over the rows. Kept for the way back: x, w and r.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        rstd = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        y = x * rstd
        return y if weight is None else y.mul_(weight)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, rstd = ctx.saved_tensors
        width, dx, dw = x.shape[-1], None, None
        with no_autocast(x):
            xdy_NH = (dy * x).reshape(-1, width)
            if ctx.needs_input_grad[0]:
                sum_N = xdy_NH.sum(-1) if weight is None else xdy_NH.mv(weight)
                share = sum_N.view(rstd.shape).mul_(rstd).mul_(rstd).div_(-width)
                wide = dy if weight is None else dy * weight
                dx = torch.addcmul(wide, x, share).mul_(rstd)
            if weight is not None and ctx.needs_input_grad[1]:
                dw = xdy_NH.mul_(rstd.view(-1, 1)).sum(
                    0
                )  # not by a product: its sums over thousands of rows are less exact
        return dx, dw, None


class LayerNorm(Norm):
    """(x - mean) / sqrt(var + eps) * weight + bias."""

    def normalise(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x, (self.width,), weight, bias, self.eps)

    def size(self, x: Tensor) -> Tensor:
        return _wide(x).var(-1, correction=0).sqrt()


@norm.register("rmsnorm", paper="Zhang & Sennrich 2019, arXiv 1910.07467")
class RMSNormPart(NormPart):
    """Root-mean-square normalisation."""

    eps: float = 1e-5
    """Added to the variance, or the mean square."""
    gain: Gain = "plain"
    """plain: w; one_plus: 1 + w, starting at 0; none: no parameters."""

    def build(self, width: int, heads: int | None = None) -> nn.Module:
        return RMSNorm(width, self.eps, self.gain, False, heads)

    def params(self, width: int) -> int:
        return width * (self.gain != "none")


@norm.register("layernorm", paper="Ba et al. 2016, arXiv 1607.06450")
class LayerNormPart(NormPart):
    """Layer normalisation; without bias it is gain-only, with gain=none and no bias non-parametric (OLMo)."""

    eps: float = 1e-5
    """Added to the variance."""
    gain: Gain = "plain"
    """plain: w; one_plus: 1 + w, starting at 0 (LayerNorm1P); none: no gain."""
    bias: bool = True
    """Add a learned bias."""

    def build(self, width: int, heads: int | None = None) -> nn.Module:
        return LayerNorm(width, self.eps, self.gain, self.bias, heads)

    def params(self, width: int) -> int:
        return width * ((self.gain != "none") + self.bias)


class TanhNorm(nn.Module):
    """tanh(alpha x) * weight + bias."""

    param_classes = {"weight": "norm", "bias": "bias", "alpha": "scalar"}

    def __init__(self, width: int, alpha: float, heads: int | None) -> None:
        super().__init__()
        shape = (width,) if heads is None else (heads, width)
        self.alpha = nn.Parameter(torch.empty(()))
        self.weight, self.bias = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))
        self.starts = {"alpha": alpha}

    def forward(self, x: Tensor) -> Tensor:
        return ((_wide(x) * self.alpha).tanh() * self.weight + self.bias).to(x.dtype)


@norm.register("dyt", paper="Zhu et al. 2025 (Transformers without normalization), arXiv 2503.10622")
class DynamicTanh(NormPart):
    """tanh(alpha x) with a learnable alpha in place of statistics."""

    alpha: float = 0.5
    """Where alpha starts."""

    def build(self, width: int, heads: int | None = None) -> nn.Module:
        return TanhNorm(width, self.alpha, heads)

    def params(self, width: int) -> int:
        return 2 * width + 1
