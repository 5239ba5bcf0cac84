"""From a checkpoint to a model that can be used: for eval, generate and export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from slm.checkpoint.layout import resolve
from slm.checkpoint.reading import load, specs
from slm.config.base import explain
from slm.config.errors import ConfigError, RunError

if TYPE_CHECKING:
    import torch

    from slm.model.config import Model
    from slm.model.decoder import Decoder


AVERAGE = "ema"
"""The group of averaged weights, ``<parameter>/ema``."""


@dataclass(frozen=True)
class Restored:
    """A model out of a checkpoint. ``config``: the resolved experiment as plain data; ``tokenizer``: tokenizer.json."""

    model: "Decoder"
    config: dict[str, Any]
    tokenizer: bytes
    state: dict[str, Any]
    path: Path

    @property
    def context(self) -> int:
        """How many tokens it can be trusted to read: those of the rows it was last trained on, or the model's context if it was imported."""
        own = self.model.config.window(None)
        trained = (self.config.get("data") or {}).get("seq_len")
        return min(own, trained) if isinstance(trained, int) else own


def restore(path: Path | str, *, device: "torch.device | str" = "cpu") -> Restored:
    """Read a run directory's newest checkpoint, or the step directory itself, into an evaluation-mode model: averaged weights
    (``train.ema``) where it has such.

    The optimiser's state isn't read, and not verified.

    Raises:
        RunError: no checkpoint there, or a damaged one.
        ConfigError: the model uses a part that this installation doesn't know (a plugin, perhaps).
    """
    from slm.model.decoder import Decoder

    found = resolve(path)
    averaged = specs(found, AVERAGE)
    checkpoint = load(found, groups=(AVERAGE if averaged else "model",))
    config = yaml.safe_load(checkpoint.config)
    model = Decoder(shape_of(config, checkpoint.path))
    weights = (
        {n.removesuffix("/ema"): t for n, t in checkpoint.groups[AVERAGE].items() if n.endswith("/ema")}
        if averaged
        else checkpoint.model
    )
    load_weights(model, weights, checkpoint.path)
    return Restored(model.to(device).eval(), config, checkpoint.tokenizer, checkpoint.state, checkpoint.path)


def shape_of(config: Mapping[str, Any], where: Path) -> "Model":
    """The model of a resolved experiment. Raises `ConfigError` if it uses a part that this installation doesn't know."""
    import pydantic

    from slm.model.config import Model

    try:
        return Model(**config["model"])
    except pydantic.ValidationError as error:
        raise explain(error, Model, "model") from None
    except ConfigError as error:
        plugins = config.get("plugins")
        hint = f" The run used plugins {plugins}: pass --plugins to load them." if plugins else ""
        raise ConfigError(f"{where}: {error}{hint}") from None


def load_weights(model: "Decoder", weights: "dict[str, torch.Tensor]", where: Path) -> None:
    """Copy weights in by name. Raises `RunError` if a name or a shape differs."""
    import torch

    expected = dict(model.named_parameters())
    check_weights(expected, weights, where)
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(weights[name])


def check_weights(expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], where: Path) -> None:
    """Raise `RunError` if a name or a shape differs."""
    odd = sorted(expected.keys() ^ weights.keys()) or sorted(
        n for n in expected if expected[n].shape != weights[n].shape
    )
    if odd:
        raise RunError(f"{where}: the weights don't fit the model in its config; first difference: {odd[0]!r}.")
