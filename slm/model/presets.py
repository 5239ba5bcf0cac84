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


def list_presets() -> list[str]:
    """Names of all presets."""
    return group_options("model")


@lru_cache
def load_preset(name: str) -> Model:
    """The model of a preset. Raises `ConfigError` with the nearest name."""
    for folder in conf_dirs():
        file = folder / "model" / f"{name}.yaml"
        if file.is_file():
            data: dict[str, Any] = yaml.safe_load(file.read_text())
            return validate(Model, {"vocab": DEFAULT_VOCAB, "context": DEFAULT_CONTEXT, **data})
    raise ConfigError(f"There is no model preset {name!r}. {suggest(name, list_presets())}")
