"""A block: where the norms stand and how the branches join the residual stream.

With f a branch (attention, then feed-forward), and s a factor on it:

===========  ======================================  ==========================================
pre          x + s f(norm(x))                        GPT-2, Llama
post         norm(x + s f(x))                        the original transformer, OPT-350M
sandwich     x + s norm(f(norm(x)))                  Gemma 2, Peri-LN
reordered    x + s norm(f(x))                        OLMo 2
parallel     x + s f1(norm(x)) + s f2(norm'(x))      GPT-J (one norm), GPT-NeoX (two)
===========  ======================================  ==========================================
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from slm.config.registry import Registry
from slm.cost.cost import Cost
from slm.model.axes import norms_along
from slm.model.ffn.activations import ACTIVATIONS
from slm.model.parts import BuildContext, ModelPart
from slm.model.sequence import Handed, Here


class ResidualPart(ModelPart):
    """An arrangement of a block. Its module is called as ``block(x_BTD, here)``: see `BlockBase`."""

    before: ClassVar[bool] = False
    """A norm on what a branch reads."""
    behind: ClassVar[bool] = False
    """A norm on what a branch writes."""
    around: ClassVar[bool] = False
    """A norm on the sum."""
    branch_scale: float = 1.0
    """Factor on every branch (Granite's residual_multiplier)."""
    depth_scale: float | None = pydantic.Field(None, gt=0)
    """Every branch is multiplied by this / sqrt(layers) (MiniCPM's scale_depth, arXiv 2404.06395)."""
    lambdas: bool = False
    """Learn a factor on the stream and one on the embeddings, which are mixed in again before each block: a x + b x0
    (modded-nanogpt, nanochat)."""
    shortcut_rank: int | None = pydantic.Field(None, gt=0)
    """Rank of a nonlinear shortcut beside the attention, W2 gelu(W1 y) (PanGu-pi's augmented shortcut, arXiv 2312.17276)."""

    def factor(self, ctx: BuildContext) -> float:
        """What a branch is multiplied by."""
        depth = 1.0 if self.depth_scale is None else self.depth_scale / len(ctx.model.contexts) ** 0.5
        return self.branch_scale * depth * ctx.model.parametrization.branch_factor(ctx.model)

    def at_depth(self, old: int, new: int) -> Self:
        """The same factor on branches in a model that was cut from ``old`` places to ``new``."""
        if self.depth_scale is None or old == new:
            return self
        return self.with_(depth_scale=self.depth_scale * (new / old) ** 0.5)

    @property
    def final_norm(self) -> bool:
        """Whether the stream needs a norm behind the last block."""
        return not self.around

    @property
    def norms(self) -> int:
        """Norms of a block."""
        return 2 * (self.before + self.behind + self.around)

    def build(self, ctx: BuildContext, shared_ffn: nn.Module | None = None) -> nn.Module:
        """The block. ``shared_ffn``: the feed-forward of another block to use instead of an own one."""
        return Block(self, ctx, shared_ffn)

    def cost(self, ctx: BuildContext) -> Cost:
        shortcut = 2 * ctx.dim * (self.shortcut_rank or 0)
        return Cost(self.norms * ctx.model.norm.params(ctx.dim) + shortcut + 2 * self.lambdas, 2 * shortcut)


residual = Registry("residual", ResidualPart)
ResidualSlot = Annotated[ResidualPart, residual.field()]


class BlockBase(nn.Module):
    """What all arrangements have: the two branches, canon convolutions before them, learned mixing, the shortcut.

    A block is a function: ``block(x_BTD, here)`` returns the stream and what it hands on, and leaves ``here`` as it was. So
    training may run it a second time (`impl.recompute`) or compile it once for all (`impl.compile`). A cache, in decoding, grows.
    """

    param_classes = {"mix": "scalar"}
    axes = {"mix": (None,)} | norms_along(
        "dim", *(f"{branch}_{norm}" for branch in ("attention", "ffn") for norm in ("norm", "post_norm", "out_norm"))
    )

    def __init__(self, part: ResidualPart, ctx: BuildContext, shared_ffn: nn.Module | None) -> None:
        super().__init__()
        self.scale = part.factor(ctx)
        self.attention = ctx.attention.build(ctx)
        self.ffn = ctx.ffn.build(ctx) if shared_ffn is None else shared_ffn
        self.conv_a, self.conv_c = (ctx.model.conv.build(point, ctx.dim) for point in "AC")
        self.shortcut = Shortcut(ctx.dim, part.shortcut_rank) if part.shortcut_rank else None
        self.mix = nn.Parameter(torch.empty(2)) if part.lambdas else None
        self.starts = {"mix": torch.tensor([1.0, 0.0])}

    def forward(self, x_BTD: Tensor, here: Here) -> tuple[Tensor, Handed]:
        own = here.fresh()
        return self.arrange(self.mixed(x_BTD, own), own), own.handed_on(here)

    def arrange(self, x_BTD: Tensor, here: Here) -> Tensor:
        """The stream behind both branches."""
        raise NotImplementedError

    def mixed(self, x_BTD: Tensor, here: Here) -> Tensor:
        """The stream with the embeddings mixed in again."""
        if self.mix is None or here.x0_BTD is None:
            return x_BTD
        a, b = self.mix.to(x_BTD.dtype)
        return a * x_BTD + b * here.x0_BTD.to(x_BTD.dtype)

    def attend(self, y_BTD: Tensor, here: Here) -> Tensor:
        """The attention branch."""
        if self.conv_a is not None:
            y_BTD = self.conv_a(y_BTD, here)
        out_BTD = self.attention(y_BTD, here)
        return out_BTD if self.shortcut is None else out_BTD + self.shortcut(y_BTD)

    def feed(self, y_BTD: Tensor, here: Here) -> Tensor:
        """The feed-forward branch."""
        if self.conv_c is not None:
            y_BTD = self.conv_c(y_BTD, here)
        return self.ffn(y_BTD, here)  # type: ignore[no-any-return]

    def add(self, x_BTD: Tensor, branch_BTD: Tensor) -> Tensor:
        """The stream with a branch added."""
        return x_BTD + (branch_BTD if self.scale == 1.0 else branch_BTD * self.scale)


class Shortcut(nn.Module):
    """W2 gelu(W1 x) of small rank."""

    axes = {"up.weight": (None, "dim"), "down.weight": ("dim", None)}

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(ACTIVATIONS["gelu"](self.up(x_BTD)))  # type: ignore[no-any-return]


class Block(BlockBase):
    """Attention, then feed-forward."""

    def __init__(self, part: ResidualPart, ctx: BuildContext, shared_ffn: nn.Module | None) -> None:
        super().__init__(part, ctx, shared_ffn)
        made = nn.Identity if not part.before else ctx.norm
        self.attention_norm, self.ffn_norm = made(), made()
        made = nn.Identity if not part.behind else ctx.norm
        self.attention_post_norm, self.ffn_post_norm = made(), made()
        made = nn.Identity if not part.around else ctx.norm
        self.attention_out_norm, self.ffn_out_norm = made(), made()

    def arrange(self, x_BTD: Tensor, here: Here) -> Tensor:
        y_BTD = self.attend(self.attention_norm(x_BTD), here)
        x_BTD = self.attention_out_norm(self.add(x_BTD, self.attention_post_norm(y_BTD)))
        y_BTD = self.feed(self.ffn_norm(x_BTD), here)
        return self.ffn_out_norm(self.add(x_BTD, self.ffn_post_norm(y_BTD)))  # type: ignore[no-any-return]


class ParallelBlock(BlockBase):
    """Attention and feed-forward side by side."""

    def __init__(self, part: "Parallel", ctx: BuildContext, shared_ffn: nn.Module | None) -> None:
        super().__init__(part, ctx, shared_ffn)
        self.attention_norm = ctx.norm()
        self.ffn_norm = ctx.norm() if part.own_norms == 2 else None

    def arrange(self, x_BTD: Tensor, here: Here) -> Tensor:
        y_BTD = self.attention_norm(x_BTD)
        z_BTD = y_BTD if self.ffn_norm is None else self.ffn_norm(x_BTD)
        return self.add(x_BTD, self.attend(y_BTD, here) + self.feed(z_BTD, here))


@residual.register("pre", paper="Xiong et al. 2020, arXiv 2002.04745")
class PreNorm(ResidualPart):
    """Each branch reads the normalised stream."""

    before = True


@residual.register("post", paper="Vaswani et al. 2017, arXiv 1706.03762")
class PostNorm(ResidualPart):
    """The sum of stream and branch is normalised; there is no final norm."""

    around = True


@residual.register(
    "sandwich", paper="Ding et al. 2021 (CogView), arXiv 2105.13290; Kim et al. 2025 (Peri-LN), arXiv 2502.02732"
)
class Sandwich(ResidualPart):
    """Norms on what a branch reads and on what it writes (Gemma 2, Peri-LN)."""

    before = True
    behind = True


@residual.register(
    "reordered", paper="OLMo team 2024 (OLMo 2), arXiv 2501.00656; Liu et al. 2021 (Swin v2), arXiv 2111.09883"
)
class Reordered(ResidualPart):
    """A norm on what a branch writes, none on what it reads."""

    behind = True


@residual.register("parallel", paper="Wang & Komatsuzaki 2021 (GPT-J); Black et al. 2022 (GPT-NeoX), arXiv 2204.06745")
class Parallel(ResidualPart):
    """Attention and feed-forward side by side, with one norm for both or two."""

    own_norms: Literal[1, 2] = 1
    """1: one norm for both branches (GPT-J); 2: one each (GPT-NeoX)."""

    @property
    def norms(self) -> int:
        return self.own_norms

    def build(self, ctx: BuildContext, shared_ffn: nn.Module | None = None) -> nn.Module:
        return ParallelBlock(self, ctx, shared_ffn)
