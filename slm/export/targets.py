"""Which Hugging Face class, if any, computes exactly what a model computes.

Closed by construction: a family's config.json is written for the model and read back; only if that is the same model, part
by part and layer by layer, does the model fit. Anything else is refused with what doesn't fit, because the normal failure
of exporters is not a crash but a model that loads and silently computes something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slm.export.families import FAMILIES, Family, Unfit
from slm.model.auxiliary import NoAux, ZLoss
from slm.model.config import Model

SHOWN = 3
"""Classes whose reasons are told: those that come nearest."""


@dataclass(frozen=True)
class Target:
    """A class that computes a model, and the config.json that makes it do so."""

    family: Family
    config: dict[str, Any]

    @property
    def architecture(self) -> str:
        return self.family.architecture


def choose(model: Model) -> tuple[Target | None, dict[str, str]]:
    """The first family that fits, and for every one that doesn't, why; those that come nearest first."""
    if type(model.aux) not in (NoAux, ZLoss):  # these two only change the training loss
        why = f"model.aux is {model.aux.part_name!r}, whose own weights no class holds"
        return None, {family.architecture: why for family in FAMILIES}
    misfits: dict[str, Unfit] = {}
    for family in (f for f in FAMILIES if f.exports):
        try:
            return Target(family, family.write(model)), _texts(misfits)
        except Unfit as misfit:
            misfits[family.architecture] = misfit
    return None, _texts(misfits)


def _texts(misfits: dict[str, Unfit]) -> dict[str, str]:
    return {name: str(misfit) for name, misfit in sorted(misfits.items(), key=lambda item: item[1].differences)}


def why_not(reasons: dict[str, str]) -> str:
    """The reasons in one sentence each, of the classes that come nearest."""
    near = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:SHOWN])
    return near + (f"; and {len(reasons) - SHOWN} more classes don't either" if len(reasons) > SHOWN else "")
