"""From ids to vectors and back: the input embedding and the output head."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from slm.config.registry import Registry
from slm.cost.cost import Cost
from slm.model.axes import Axes, norms_along
from slm.model.parts import BuildContext, ModelPart
from slm_kernels import embedding as gather


class EmbeddingPart(ModelPart):
    """Input embedding and output head."""

    tied: ClassVar[bool] = False
    scale: float | Literal["sqrt_dim"] = 1.0
    """Factor on the embeddings; sqrt_dim: the square root of the width (Vaswani et al. 2017; Gemma)."""
    norm: bool = False
    """Normalise the embeddings (BLOOM)."""
    rank: int | None = pydantic.Field(None, gt=0)
    """Width of the stored rows, with projections to and from the model's (Lan et al. 2019, arXiv 1909.11942; OPT-350M)."""
    head_bias: bool = False
    """A bias on the logits (Phi, GPT-J)."""
    softcap: float | None = pydantic.Field(None, gt=0)
    """cap tanh(logit / cap) (Gemma 2, arXiv 2408.00118)."""
    logit_divisor: float = pydantic.Field(1.0, gt=0)
    """Logits are divided by it (MiniCPM: dim / 256; Granite)."""
    pad_to: int = pydantic.Field(1, gt=0)
    """Store a multiple of so many rows, for fast kernels; rows past the vocabulary score -inf."""

    def rows(self, vocab: int) -> int:
        """Stored rows."""
        return -(-vocab // self.pad_to) * self.pad_to

    def factor(self, dim: int) -> float:
        """What embeddings are multiplied by."""
        return dim**0.5 if self.scale == "sqrt_dim" else float(self.scale)

    def at_width(self, old: int, new: int) -> Self:
        """The same factor on embeddings in a model that was cut from width ``old`` to ``new``."""
        return self if self.factor(old) == self.factor(new) else self.with_(scale=self.factor(old))

    def build(self, ctx: BuildContext) -> "Embedding":
        return Embedding(self, ctx)

    def costs(self, ctx: BuildContext) -> tuple[Cost, Cost]:
        """Cost of the input embedding and of the head. A tied head has FLOPs and no matrix of its own."""
        vocab, width = self.rows(ctx.model.vocab_), self.rank or ctx.dim
        project = width * ctx.dim if self.rank else 0
        norm = ctx.model.norm.params(ctx.dim) if self.norm else 0
        matrix = 0 if self.tied else vocab * width
        head = Cost(matrix + project + vocab * self.head_bias, 2 * (vocab * width + project))
        return Cost(vocab * width + project + norm, 2 * project), head


embedding = Registry("embedding", EmbeddingPart)
EmbeddingSlot = Annotated[EmbeddingPart, embedding.field()]


class Embedding(nn.Module):
    """``weight`` (rows, D or rank) embeds; ``head_weight`` scores."""

    param_classes = {"weight": "embedding", "head": "head", "head_bias": "bias"}

    def __init__(self, part: EmbeddingPart, ctx: BuildContext) -> None:
        super().__init__()
        dim, rows, width = ctx.dim, part.rows(ctx.model.vocab_), part.rank or ctx.dim
        self.vocab, self.padded = ctx.model.vocab_, rows > ctx.model.vocab_
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.head = None if part.tied else nn.Parameter(torch.empty(rows, width))
        self.head_bias = nn.Parameter(torch.empty(rows)) if part.head_bias else None
        self.project_in = nn.Linear(width, dim, bias=False) if part.rank else None
        self.project_out = nn.Linear(dim, width, bias=False) if part.rank else None
        self.norm = ctx.norm() if part.norm else None
        scheme = ctx.model.parametrization
        self.scale = part.factor(dim) * scheme.embedding_factor(ctx.model)
        stored = None if part.rank else "dim"
        self.axes: dict[str, Axes] = {"weight": (None, stored), "head": (None, stored), "head_bias": (None,)}
        self.axes |= {"project_in.weight": ("dim", None), "project_out.weight": (None, "dim")} | norms_along(
            "dim", "norm"
        )
        self.logit_scale = scheme.logit_factor(ctx.model) / part.logit_divisor
        self.softcap = part.softcap

    @property
    def head_weight(self) -> Tensor:
        return self.weight if self.head is None else self.head

    @property
    def head_options(self) -> dict[str, Any]:
        """How logits come about, in the words of `slm_kernels.linear_cross_entropy`."""
        return {
            "bias": self.head_bias,
            "logit_scale": self.logit_scale,
            "softcap": self.softcap,
            "valid": self.vocab if self.padded else None,
        }

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = gather(tokens_BT, self.weight)
        if self.project_in is not None:
            x_BTD = self.project_in(x_BTD)
        if self.scale != 1.0:
            x_BTD = x_BTD * self.scale
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def features(self, hidden: Tensor) -> Tensor:
        """What the head's rows are multiplied with."""
        return hidden if self.project_out is None else self.project_out(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token: (..., D) -> (..., V), without the padding."""
        scores = nn.functional.linear(self.features(hidden), self.head_weight)[..., : self.vocab] * self.logit_scale
        if self.head_bias is not None:
            scores = scores + self.head_bias[: self.vocab]
        return scores if self.softcap is None else self.softcap * (scores / self.softcap).tanh()


@embedding.register("tied", paper="Press & Wolf 2017, arXiv 1608.05859")
class Tied(EmbeddingPart):
    """One matrix embeds and scores."""

    tied = True


@embedding.register("untied")
class Untied(EmbeddingPart):
    """Separate input embedding and output head."""
