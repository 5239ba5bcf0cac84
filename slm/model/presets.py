"""Presets: a model's numbers in conf/model/NAME.yaml, with their source."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import yaml

from slm.config.compose import validate
from slm.config.errors import ConfigError, suggest
from slm.config.paths import conf_dirs, group_options
from slm.model.config import Model

DEFAULT_VOCAB = 4096
"""Vocabulary and context of a preset that leaves them to the recipe, for showing it alone."""
DEFAULT_CONTEXT = 256

MISSING = {
    "hare-1.1b": "named only in the legend of figures of the survey's first version (arXiv 2409.15790); no shape is given",
}
"""Models of the survey without a preset, and why."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # seven times as fast, but not part of every PyYAML


def list_presets() -> list[str]:
    """Names of all presets."""
    return group_options("model")


@lru_cache
def load_preset(name: str) -> Model:
    """The model of a preset. Raises `ConfigError` with the nearest name."""
    for folder in conf_dirs():
        file = folder / "model" / f"{name}.yaml"
        if file.is_file():
            try:
                data: dict[str, Any] = yaml.load(file.read_text(), Loader=_Loader)
            except yaml.YAMLError as error:
                raise ConfigError(f"The preset {file} is no valid YAML: {error}") from None
            return validate(Model, {"vocab": DEFAULT_VOCAB, "context": DEFAULT_CONTEXT, **data})
    raise ConfigError(f"There is no model preset {name!r}. {suggest(name, list_presets())}")
