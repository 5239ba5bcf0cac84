"""Families of Hugging Face checkpoints: one entry per model type, grouped into files by their nearest relative.

`base` says what a family is, `layouts` how tensors are rearranged, `shared` holds what many have in common, `tensors` applies
the maps. A new family is a few lines in one of the group files, or a new file whose ``FAMILIES`` is added here.
"""

from slm.config.errors import ConfigError, suggest
from slm.export.families import alibi, cohere, falcon, gemma, gpt2, latent, llama, mixers, neox, olmo, relatives
from slm.export.families.base import Family, Unfit

GROUPS = (llama, relatives, olmo, gemma, gpt2, neox, falcon, alibi, cohere, latent, mixers)
FAMILIES: tuple[Family, ...] = tuple(family for group in GROUPS for family in group.FAMILIES)
"""All, in the order in which an export tries them."""


def family_of(model_type: str) -> Family:
    """The family of a config.json's ``model_type``. Raises `ConfigError` with the nearest known one."""
    known = {family.model_type: family for family in FAMILIES}
    if model_type not in known:
        raise ConfigError(
            f"slm can't read checkpoints of model type {model_type!r}. {suggest(model_type, known)} Known: {', '.join(sorted(known))}."
        )
    return known[model_type]


__all__ = ["FAMILIES", "Family", "Unfit", "family_of"]
