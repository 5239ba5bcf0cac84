"""Which layer gets what, and which layers share their weights.

A *place* is a position in the order of execution; a *block* is a stored set of weights. Without sharing there is one
block per place.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from slm.config.errors import ConfigError, suggest
from slm.config.registry import Registry
from slm.model.attention.base import attention as attentions
from slm.model.attention.softmax import SoftmaxPart
from slm.model.ffn.base import ffn as feed_forwards
from slm.model.parts import BuildContext, ModelPart, refuse
from slm.model.position.base import NoPosition
from slm.model.position.base import position as positions

if TYPE_CHECKING:
    from slm.model.config import Model


class LayoutPart(ModelPart):
    """Says, layer by layer, which parts are built. All layers are distinct unless sharing is asked for."""

    repeat: int = pydantic.Field(1, gt=0)
    """Times that each block runs: ``model.layers`` blocks, ``repeat`` x as many places, each with a cache of its own."""
    order: Literal["block", "cycle"] = "block"
    """With repeat: each block right after itself (MobileLLM-LS), or all blocks over and over (Universal Transformer)."""
    share_ffn: bool = False
    """One feed-forward for all blocks (MobiLlama)."""

    def blocks(self, model: "Model") -> list[BuildContext]:
        """The stored blocks' parts, one per ``model.layers``."""
        return [plain(model, i) for i in range(model.layers)]

    def places(self, model: "Model") -> list[BuildContext]:
        """The parts at every place in the order of execution."""
        blocks = self.blocks(model)
        if self.share_ffn:
            odd = next((b for b in blocks if b.ffn != blocks[0].ffn), None)
            if odd is not None:
                raise refuse(
                    self, f"share_ffn needs equal feed-forwards, but those of layers 0 and {odd.block} differ."
                )
            blocks = [replace(b, ffn_block=0) for b in blocks]
        if self.order == "cycle":
            order = [b for _ in range(self.repeat) for b in blocks]
        else:
            order = [b for b in blocks for _ in range(self.repeat)]
        return [replace(b, layer=i) for i, b in enumerate(order)]


layout = Registry("layout", LayoutPart)
LayoutSlot = Annotated[LayoutPart, layout.field()]


def plain(model: "Model", block: int) -> BuildContext:
    """A block with the model's own parts."""
    return BuildContext(model, block, model.attention, model.ffn, model.position, block, block)


@layout.register("uniform")
class Uniform(LayoutPart):
    """Every layer has the model's attention and feed-forward."""


@layout.register("repeat", paper="Liu et al. 2024 (MobileLLM-LS), arXiv 2402.14905")
class Repeat(LayoutPart):
    """Every block runs twice in a row: twice the depth at equal parameters."""

    repeat: int = pydantic.Field(2, gt=0)


@layout.register("shared_ffn", paper="Thawakar et al. 2024 (MobiLlama), arXiv 2402.16840")
class SharedFeedForward(LayoutPart):
    """One feed-forward serves all blocks; attention and norms are each block's own."""

    share_ffn: bool = True


@layout.register("pattern")
class Pattern(LayoutPart):
    """A pattern of kinds of layers, such as ``window*5,full``, repeated to the model's depth.

    A kind is defined in ``kinds`` by what it changes: ``{window: {attention: {window: 512}, position: {base: 1e4}}}``. Known
    without a definition: ``full`` (the model's parts), ``nope`` (no position encoding), and the name of any attention.
    """

    pattern: str = "full"
    """Kinds and counts, such as window*5,full; repeated to the depth."""
    kinds: dict[str, dict[str, Any]] = {}
    """What each kind changes, by slot: attention, ffn, position."""

    @pydantic.field_validator("kinds")
    @classmethod
    def _slots_only(cls, kinds: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for kind, changes in kinds.items():
            for slot in changes:
                if slot not in ("attention", "ffn", "position"):
                    raise ConfigError(
                        f"model.layout.kinds.{kind}: unknown slot {slot!r}. {suggest(slot, ('attention', 'ffn', 'position'))}"
                    )
        return kinds

    def sequence(self) -> list[str]:
        """The kinds of one round of the pattern. Raises `ConfigError` if it can't be read."""
        found = []
        for piece in self.pattern.split(","):
            match = re.fullmatch(r"\s*([\w.-]+?)\s*(?:\*\s*(\d+))?\s*", piece)
            if match is None or match[2] == "0":
                raise refuse(
                    self,
                    f"can't read {piece!r} in pattern={self.pattern!r}. Write kinds and counts, such as 'window*3,full'.",
                )
            found += [match[1]] * int(match[2] or 1)
        return found

    def check_known(self) -> None:
        """Raise `ConfigError` for a kind that means nothing."""
        for kind in self.sequence():
            if kind not in self.kinds and kind not in ("full", "nope") and kind not in attentions.parts:
                known = [*self.kinds, "full", "nope", *attentions.parts]
                raise refuse(self, f"the pattern names {kind!r}, which is no kind. {suggest(kind, known)}")
        unused = set(self.kinds) - set(self.sequence())
        if unused:
            raise refuse(
                self, f"kinds defines {', '.join(sorted(unused))}, which pattern={self.pattern!r} doesn't use."
            )

    def blocks(self, model: "Model") -> list[BuildContext]:
        self.check_known()
        kinds = self.sequence()
        made = {kind: self._kind(model, kind) for kind in kinds}
        return [replace(made[kinds[i % len(kinds)]], layer=i, block=i, ffn_block=i) for i in range(model.layers)]

    def _kind(self, model: "Model", kind: str) -> BuildContext:
        base = plain(model, 0)
        if kind not in self.kinds:
            if kind == "nope":
                return replace(base, position=NoPosition())
            if kind == "full":
                return base
            return replace(base, attention=_changed(attentions, model.attention, {"name": kind}, model))
        changes = self.kinds[kind]
        slots: dict[str, tuple[Registry[Any], Any]] = {
            "attention": (attentions, model.attention),
            "ffn": (feed_forwards, model.ffn),
            "position": (positions, model.position),
        }
        try:
            return replace(base, **{s: _changed(*slots[s], change, model) for s, change in changes.items()})
        except ConfigError as error:
            raise ConfigError(f"model.layout.kinds.{kind}: {error}") from None


def _changed(registry: Registry[Any], part: Any, change: Any, model: "Model") -> Any:
    """A part with some fields changed; another part keeps the fields that both have, as a swap does."""
    change = {"name": change} if isinstance(change, str) else change
    if not isinstance(change, dict) or not isinstance(change.get("name", ""), str):
        raise ConfigError(f"{registry.slot}: expected a part's name or a mapping of its fields, got {change!r}.")
    name = change.get("name", part.part_name)
    cls = registry.get(name)
    if name == part.part_name:
        kept = dict(part)
    else:
        kept = {k: v for k, v in part if k in cls.model_fields and k in part.model_fields_set}
    return registry.parse(kept | change | {"name": name}).resolve(model.dim, model.layers)


@layout.register("scaling", paper="Mehta et al. 2024 (OpenELM), arXiv 2404.14619")
class LayerwiseScaling(LayoutPart):
    """Heads and feed-forward grow with depth: alpha_i dim / head_dim heads, beta_i dim hidden, both linear in i.

    Rounding as published: factors to two decimals, query widths to whole groups, feed-forwards to ``multiple``, each to
    the nearest multiple but never down by more than a tenth.
    """

    alpha: tuple[float, float] = (0.5, 1.0)
    """Attention width over model width, at the first and the last layer."""
    beta: tuple[float, float] = (0.5, 4.0)
    """Feed-forward width over model width, at the first and the last layer."""
    multiple: int = pydantic.Field(256, gt=0)
    """Feed-forward widths are multiples of it."""

    def blocks(self, model: "Model") -> list[BuildContext]:
        part = model.attention.canonical()
        group = getattr(part, "heads", None) and getattr(part, "kv_heads", None) and part.heads // part.kv_heads  # type: ignore[attr-defined]
        if not isinstance(part, SoftmaxPart) or not group:
            raise refuse(
                self,
                f"scales heads and key/value heads, which model.attention {model.attention.part_name!r} doesn't have.",
            )
        if model.ffn.hidden is None:
            raise refuse(self, f"scales hidden, which model.ffn {model.ffn.part_name!r} doesn't have.")
        width, found = part.head_dim or 0, []
        for i, (alpha, beta) in enumerate(
            zip(_line(self.alpha, model.layers), _line(self.beta, model.layers), strict=True)
        ):
            heads = make_divisible(alpha * model.dim, width * group) // width
            hidden = make_divisible(beta * model.dim, self.multiple)
            attention = part.with_(heads=heads, kv_heads=heads // group).resolve(model.dim, model.layers)
            found.append(replace(plain(model, i), attention=attention, ffn=model.ffn.with_(hidden=hidden)))
        return found


def _line(ends: tuple[float, float], layers: int) -> list[float]:
    """``layers`` values from one end to the other, rounded to two decimals."""
    step = (ends[1] - ends[0]) / max(1, layers - 1)
    return [round(ends[0] + step * i, 2) for i in range(layers)]


def make_divisible(value: float, multiple: int) -> int:
    """The nearest multiple, at least one, and never below nine tenths of ``value`` (MobileNet's rule)."""
    rounded = max(multiple, int(value + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * value else rounded
