"""Along what each dimension of a parameter runs, so that a model can be cut narrower without knowing its parts.

A module says so in ``axes``, beside its parameters: ``axes = {"up.weight": ("hidden", "dim")}``, names relative to the module,
one entry per dimension, None for what is never cut. A norm doesn't know what it normalises, so the module that holds it says.
A parameter that nobody names can't be cut.

=========  =====================================================================
dim        the residual stream
hidden     a feed-forward's inner channels
heads      query heads
q          query heads x head width, head after head
groups     key/value heads
kv         key/value heads x head width
=========  =====================================================================
"""

from __future__ import annotations

from torch import nn

AXES = ("dim", "hidden", "heads", "q", "groups", "kv")
Axes = tuple[str | None, ...]


def norms_along(axis: str, *names: str) -> dict[str, Axes]:
    """Entries of ``axes`` for norms over one axis, whichever parameters they have."""
    return {
        f"{name}.{leaf}": (axis,) if leaf != "alpha" else () for name in names for leaf in ("weight", "bias", "alpha")
    }


def axes_of(model: nn.Module, name: str) -> Axes | None:
    """The axes of a parameter by its dotted name; None if no module says.

    Raises:
        ValueError: a module names an axis that doesn't exist.
    """
    module, rest = model, name
    while True:
        table: dict[str, Axes] = getattr(module, "axes", {})
        if rest in table:
            odd = [axis for axis in table[rest] if axis is not None and axis not in AXES]
            if odd:
                raise ValueError(f"{type(module).__name__}.axes: {odd[0]!r} is not one of {', '.join(AXES)}")
            return table[rest]
        child, dot, rest = rest.partition(".")
        if not dot:
            return None
        module = module.get_submodule(child)
