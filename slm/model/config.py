"""`Model`: the ``model`` section. A model is its width, its depth, and a part in every slot."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Self

import pydantic

from slm.config.base import Config
from slm.config.errors import ConfigError
from slm.cost.cost import Cost, ModelCost
from slm.model.attention import AttentionSlot
from slm.model.attention.softmax import GroupedQuery
from slm.model.auxiliary import AuxSlot, NoAux
from slm.model.cache import Room
from slm.model.conv import ConvSlot, NoConv
from slm.model.embedding import EmbeddingSlot, Tied
from slm.model.ffn import FeedForwardSlot, SwiGLU
from slm.model.init import InitSlot, Normal
from slm.model.layout import LayoutSlot, Uniform
from slm.model.norm import NormSlot, RMSNormPart
from slm.model.parametrization import ParametrizationSlot, Standard
from slm.model.parts import BuildContext, ModelPart
from slm.model.position import PositionSlot
from slm.model.position.rope import Rope
from slm.model.residual import PreNorm, ResidualSlot

SLOTS = (
    "attention", "ffn", "norm", "position", "conv", "residual", "embedding", "layout", "init", "parametrization", "aux",
)  # fmt: skip
"""Each part's open fields are filled from the model's width and depth when the model is validated."""


class Model(Config):
    """A decoder-only transformer."""

    dim: int = pydantic.Field(gt=0)
    """Width of the residual stream."""
    layers: int = pydantic.Field(gt=0)
    """Stored blocks; a layout may run them more often."""
    vocab: int | None = pydantic.Field(None, gt=1)
    """Tokens; None takes the tokenizer's."""
    context: int | None = pydantic.Field(None, gt=0)
    """Longest sequence the model is meant for; None takes ``data.seq_len``."""
    attention: AttentionSlot = GroupedQuery()
    ffn: FeedForwardSlot = SwiGLU()
    norm: NormSlot = RMSNormPart()
    position: PositionSlot = Rope()
    conv: ConvSlot = NoConv()
    residual: ResidualSlot = PreNorm()
    embedding: EmbeddingSlot = Tied()
    layout: LayoutSlot = Uniform()
    init: InitSlot = Normal()
    parametrization: ParametrizationSlot = Standard()
    aux: AuxSlot = NoAux()
    source: str = ""
    """Where a preset's numbers are from."""

    @pydantic.model_validator(mode="after")
    def _resolve_parts(self) -> Self:
        for slot in SLOTS:  # the model is frozen for its users; resolving its parts is part of making it
            self.__dict__[slot] = getattr(self, slot).resolve(self.dim, self.layers)
        self.__dict__.pop("contexts", None)
        for ctx in self.contexts:
            for part in (ctx.attention, ctx.ffn, ctx.position):
                part.check(ctx)
        self._check_positions()
        for slot in ("norm", "conv", "residual", "embedding", "layout", "init", "parametrization", "aux"):
            for ctx in self.contexts if slot == "conv" else self.contexts[:1]:
                getattr(self, slot).check(ctx)
        return self

    def _check_positions(self) -> None:
        used = [c.position for c in self.contexts if c.attention.positional]
        if not used and self.position.part_name != "none" and not self.position.at_input:
            raise ConfigError(
                f"model.position is {self.position.part_name!r}, but no layer has an attention that uses positions. "
                f"Set model.position to none."
            )
        changed = [c.position for c in self.contexts if c.position != self.position]
        if changed and any(p.at_input for p in (self.position, *changed)):
            raise ConfigError(
                f"model.position {self.position.part_name!r} acts on the embeddings, once for all layers: a layout can't change "
                f"it by layer."
            )

    @property
    def vocab_(self) -> int:
        """``vocab`` once it is known. Raises ValueError before."""
        if self.vocab is None:
            raise ValueError("model.vocab isn't known yet: it is the tokenizer's, and joined in by Run")
        return self.vocab

    @property
    def context_(self) -> int:
        """``context`` once it is known. Raises ValueError before."""
        if self.context is None:
            raise ValueError("model.context isn't known yet: it is data.seq_len, and joined in by Run")
        return self.context

    @cached_property
    def contexts(self) -> list[BuildContext]:
        """What each place in the order of execution is built from."""
        return self.layout.places(self)

    def canonical(self) -> dict[str, Any]:
        """Plain data that is equal for models that compute the same from the same weights: general parts in place of
        special names, layer by layer, without what only training sees."""
        own = {slot: getattr(self, slot).canonical() for slot in ("norm", "conv", "residual", "embedding")}
        own["embedding"] = own["embedding"].with_(scale=self.embedding.factor(self.dim))
        layers = [
            [self._plain(p) for p in (c.attention, c.ffn, c.position)] + [c.block, c.ffn_block] for c in self.contexts
        ]
        scheme = self.parametrization
        factors = [f(self) for f in (scheme.embedding_factor, scheme.logit_factor, scheme.branch_factor)]
        shape = {"dim": self.dim, "layers": layers, "vocab": self.vocab, "context": self.context, "factors": factors}
        return shape | {slot: part.model_dump(mode="json") for slot, part in own.items()}

    def _plain(self, part: ModelPart) -> dict[str, Any]:
        """A layer's part as plain data, with the norms that it leaves to the model filled in."""
        data = part.canonical().model_dump(mode="json")
        for name in ("qk_norm_kind", "latent_norm"):
            if name in data and data[name] is None and data.get("qk_norm") != "none":
                data[name] = self.norm.canonical().model_dump(mode="json")
        return data

    def conv_widths(self, ctx: BuildContext) -> dict[str, int]:
        """Channels at each point where a short convolution may stand."""
        return {"A": self.dim, "B": ctx.attention.qkv_width, "C": self.dim, "D": ctx.ffn.inner_width}

    def room(self, ctx: BuildContext) -> Room:
        """What one place caches."""
        return ctx.attention.room(ctx).with_states(self.conv.states(ctx))

    def window(self, asked: int | None) -> int:
        """Tokens that are read at once: as many as are asked for, or the context. Raises `ConfigError` if the context is shorter."""
        own = self.context or 2048
        if asked is not None and not 1 < asked <= own:
            raise ConfigError(f"context={asked} must be between 2 and the model's context of {own} tokens.")
        return asked or own

    def costs(self, context: int | None = None) -> ModelCost:
        """Parameters, FLOPs per token and cache of the whole model at ``context`` tokens (the model's own by default)."""
        first = self.contexts[0]
        embedding, head = self.embedding.costs(first)
        parts = {kind: Cost() for kind in ("embedding", "attention", "ffn", "norms", "position", "conv", "head", "aux")}
        parts |= {
            "embedding": embedding,
            "head": head,
            "position": self.position.cost(first),
            "aux": self.aux.cost(self.contexts[-1]),
        }
        if self.residual.final_norm:
            parts["norms"] += self.norm.cost(first)
        seen: set[int] = set()
        for ctx in self.contexts:
            again = ctx.block in seen
            for kind, cost in self._place_costs(ctx, shared_ffn=ctx.shares_ffn):
                parts[kind] += cost.again() if again else cost
            seen.add(ctx.block)
        return ModelCost(parts=parts, context=context or self.context or 2048)

    def _place_costs(self, ctx: BuildContext, *, shared_ffn: bool) -> list[tuple[str, Cost]]:
        conv = {point: self.conv.point_cost(point, width) for point, width in self.conv_widths(ctx).items()}
        ffn = [("ffn", ctx.ffn.cost(ctx)), ("conv", conv.pop("D"))]
        own = [("attention", ctx.attention.cost(ctx)), ("norms", self.residual.cost(ctx))]
        own += [("conv", cost) for cost in conv.values()]
        return own + [(kind, cost.again() if shared_ffn else cost) for kind, cost in ffn]
