"""Which layer gets what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from slm.config.registry import Registry
from slm.model.parts import BuildContext, ModelPart

if TYPE_CHECKING:
    from slm.model.config import Model


class LayoutPart(ModelPart):
    """Says, layer by layer, which parts are built. All layers are distinct unless a layout says otherwise."""

    def layers(self, model: "Model") -> list[BuildContext]:
        raise NotImplementedError


layout = Registry("layout", LayoutPart)
LayoutSlot = Annotated[LayoutPart, layout.field()]


@layout.register("uniform")
class Uniform(LayoutPart):
    """Every layer has the model's attention and feed-forward."""

    def layers(self, model: "Model") -> list[BuildContext]:
        return [BuildContext(model, i, model.attention, model.ffn) for i in range(model.layers)]
