"""Parametrisation: how initial weights, learning rates and multipliers change with width and depth.

With m = dim / base_dim and l = layers / base_layers, relative to a model of the base shape (table of CompleteP, which at
alpha = 1 and l = 1 is muP for Adam):

=================  ==============  ====================  ============  ===========  ===================
tensors            initial std     Adam rate             weight decay  Adam eps     forward
=================  ==============  ====================  ============  ===========  ===================
token embedding    1               1                     1             1/(m l)      x alpha_in
hidden matrices    m^-1/2          1/m                   m             1/(m l)      branch x l^-1
hidden gains       (1)             1                     0             1/(m l)
hidden biases      (0)             1                     0             1/(m l)
unembedding        1               1                     1             1/(m l)      logits x alpha_out / m
attention scores                                                                    1/head_dim
=================  ==============  ====================  ============  ===========  ===================

An orthogonalised update (Muon) of root mean square 0.2 has a spectral norm that grows like the square root of the width,
hence the rate m^-1/2 there. CompleteP with alpha = 1 leaves hidden rates alone in depth: l^(alpha - 1) = 1.

Sources: Yang et al. 2022 (muP), arXiv 2203.03466; Dey et al. 2025 (CompleteP), arXiv 2505.01618.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import pydantic

from slm.config.registry import Registry
from slm.model.parts import BuildContext, ModelPart, refuse

if TYPE_CHECKING:
    from slm.model.config import Model


@dataclass(frozen=True)
class Rates:
    """Factors on an optimiser's numbers for one tensor."""

    lr: float = 1.0
    orthogonal_lr: float = 1.0
    """For optimisers whose update is orthogonalised."""
    weight_decay: float = 1.0
    eps: float = 1.0


class ParametrizationPart(ModelPart):
    """Rules per tensor class. This one: none."""

    def init_factor(self, model: "Model", tensor_class: str, hidden: bool) -> float:
        """Factor on the initial standard deviation. ``hidden``: the tensor stands in a block."""
        return 1.0

    def rates(self, model: "Model", tensor_class: str, hidden: bool) -> Rates:
        """Factors on learning rate, weight decay and epsilon."""
        return Rates()

    def embedding_factor(self, model: "Model") -> float:
        return 1.0

    def logit_factor(self, model: "Model") -> float:
        return 1.0

    def branch_factor(self, model: "Model") -> float:
        return 1.0

    def attention_factor(self, model: "Model", head_dim: int) -> float:
        """Factor on the scores' scale of 1 / sqrt(head_dim)."""
        return 1.0


parametrization = Registry("parametrization", ParametrizationPart)
ParametrizationSlot = Annotated[ParametrizationPart, parametrization.field()]


@parametrization.register("standard")
class Standard(ParametrizationPart):
    """Nothing depends on the width beyond what the other parts say."""


@parametrization.register("mup", paper="Yang et al. 2022, arXiv 2203.03466")
class MuP(ParametrizationPart):
    """Maximal update parametrisation: the best learning rate of a narrow model is that of a wide one."""

    base_dim: int = pydantic.Field(256, gt=0)
    """Width at which nothing is rescaled: where the rates were tuned."""
    base_head_dim: int | None = pydantic.Field(None, gt=0)
    """Head width at that model; scores are scaled by sqrt(base_head_dim) / head_dim. None: as here, so 1 / sqrt(head_dim)."""
    input_scale: float = pydantic.Field(1.0, gt=0)
    """alpha_in."""
    output_scale: float = pydantic.Field(1.0, gt=0)
    """alpha_out."""

    def width(self, model: "Model") -> float:
        """m."""
        return model.dim / self.base_dim

    def depth(self, model: "Model") -> float:
        """l."""
        return 1.0

    def check(self, ctx: BuildContext) -> None:
        init = ctx.model.init
        if not init.fits_mup:
            raise refuse(
                self,
                f"model.init {init.part_name!r} scales embeddings with the width, which muP must not. Use normal or fan_in.",
            )
        if ctx.model.embedding.scale == "sqrt_dim":
            raise refuse(
                self,
                "model.embedding.scale=sqrt_dim grows with the width, which muP must not: set a number, such as 1.0, and tune "
                "model.parametrization.input_scale.",
            )

    def init_factor(self, model: "Model", tensor_class: str, hidden: bool) -> float:
        scaled = hidden and tensor_class == "matrix" and not model.init.scales_with_width
        return self.width(model) ** -0.5 if scaled else 1.0

    def rates(self, model: "Model", tensor_class: str, hidden: bool) -> Rates:
        m, eps = self.width(model), 1 / (self.width(model) * self.depth(model))
        if hidden and tensor_class == "matrix":
            return Rates(1 / m, m**-0.5, m, eps)
        return Rates(eps=eps)

    def embedding_factor(self, model: "Model") -> float:
        return self.input_scale

    def logit_factor(self, model: "Model") -> float:
        return self.output_scale / self.width(model)

    def branch_factor(self, model: "Model") -> float:
        return 1 / self.depth(model)

    def attention_factor(self, model: "Model", head_dim: int) -> float:
        return 1.0 if self.base_head_dim is None else (self.base_head_dim / head_dim) ** 0.5


@parametrization.register("completep", paper="Dey et al. 2025, arXiv 2505.01618")
class CompleteP(MuP):
    """muP in width and depth: branches are divided by the relative depth, so that rates carry over to deeper models."""

    base_layers: int = pydantic.Field(2, gt=0)
    """Depth at which nothing is rescaled."""

    def depth(self, model: "Model") -> float:
        return len(model.contexts) / self.base_layers

    def check(self, ctx: BuildContext) -> None:
        super().check(ctx)
        if getattr(ctx.model.init, "scale_residual", False):
            raise refuse(
                self,
                "branches are divided by the depth already, so residual outputs must not start smaller too: set model.init.scale_residual=false.",
            )
        if ctx.model.residual.depth_scale is not None:
            raise refuse(
                self,
                "branches are divided by the depth already: set model.residual.depth_scale=null (branch_scale may stay).",
            )
