"""Hugging Face checkpoint directories into slm: config.json and safetensors of a known family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from slm import checkpoint
from slm.config.errors import ConfigError, RunError
from slm.config.yaml import dump_yaml
from slm.export.families import Family, family_of
from slm.export.families.tensors import to_ours
from slm.export.hf import NO_TOKENIZER
from slm.model.config import Model
from slm.model.decoder import Decoder


@dataclass(frozen=True)
class Imported:
    """A model out of a Hugging Face directory, its weights loaded."""

    model: Decoder
    family: Family
    dtype: torch.dtype
    """Of the files' weights; ours are fp32."""


def read_directory(path: Path) -> Imported:
    """Load config.json and the safetensors of a directory.

    Raises:
        ConfigError: no such directory, a model type or a setting that slm doesn't have.
        RunError: tensors are missing, left over, damaged or of another shape.
    """
    whole = read_json(path / "config.json")
    config = text_config(whole)
    family, model = _understood(path, config)
    tensors = read_tensors(path)
    if config is not whole:
        tensors = text_tensors(tensors)
    try:
        return Imported(load(family, model, tensors), family, next(iter(tensors.values())).dtype)
    except RunError as error:
        raise RunError(f"{path}: {error}") from None


def read_config(path: Path) -> tuple[Family, Model]:
    """Family and shape of a directory's model, without its weights. Raises `ConfigError` as `read_directory`."""
    return _understood(path, text_config(read_json(path / "config.json")))


def _understood(path: Path, config: dict[str, Any]) -> tuple[Family, Model]:
    family = family_of(str(config.get("model_type")))
    try:
        return family, family.read(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def load(family: Family, config: Model, tensors: Mapping[str, Tensor]) -> Decoder:
    """A decoder of ``config`` with their ``tensors`` as its weights, fp32."""
    with torch.device("meta"):
        model = Decoder(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    ours = to_ours(family, config, shapes, tensors)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(ours[name])
    return model


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config.json."""
    return dict(config["text_config"]) if isinstance(config.get("text_config"), dict) else config


def text_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The language model's tensors out of those of a model that also sees or hears, under their usual names."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith("language_model."):
            found[name.removeprefix("language_model.")] = tensor
        elif name.startswith("model.language_model."):  # as transformers 5 writes them
            found["model." + name.removeprefix("model.language_model.")] = tensor
        elif name == "lm_head.weight":
            found[name] = tensor
    return found


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises `ConfigError` naming the file if there is none."""
    try:
        found = json.loads(file.read_text())
    except OSError:
        raise ConfigError(
            f"{file} can't be read. A Hugging Face checkpoint directory holds config.json and *.safetensors."
        ) from None
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: not a JSON object.")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a directory's safetensors files, one or sharded."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        weights = read_json(index).get("weight_map")
        if not isinstance(weights, dict) or not weights:
            raise ConfigError(f"{index}: has no weight_map.")
        names = sorted({Path(str(name)).name for name in weights.values()})
    else:
        names = ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for name in names:
        file = path / name
        if not file.is_file():
            pickled = next((p.name for p in sorted(path.glob("*.bin"))), None)
            hint = (
                f" {pickled} is a pickle, which slm doesn't open: save the model with safetensors." if pickled else ""
            )
            raise ConfigError(f"{file} isn't there; slm reads weights from safetensors.{hint}")
        try:
            tensors |= safetensors.torch.load_file(file)
        except (SafetensorError, OSError) as error:
            raise RunError(f"{file}: damaged or not a safetensors file ({error}).") from None
    if not tensors:
        raise RunError(f"{path}: its safetensors hold no tensors.")
    return tensors


def save_import(imported: Imported, path: Path, run_dir: Path) -> Path:
    """Write an imported model as a checkpoint of a run directory, for eval, generate, export and further training.

    Raises:
        ConfigError: ``run_dir`` holds a run already.
    """
    if (run_dir / "checkpoints").exists() or (run_dir / "config.yaml").exists():
        raise ConfigError(f"{run_dir} holds a run already. Choose another directory with --out.")
    tokenizer = path / "tokenizer.json"
    config = {
        "name": run_dir.name,
        "model": imported.model.config.model_dump(mode="json"),
        "imported_from": path.resolve().name,
    }
    state = {
        "step": 0,
        "tokens": 0,
        "imported": {"model_type": imported.family.model_type, "dtype": str(imported.dtype)},
    }
    return checkpoint.save(
        run_dir, 0, model=dict(imported.model.named_parameters()), optimizer={}, state=state, config=dump_yaml(config, []),
        tokenizer=tokenizer.read_bytes() if tokenizer.is_file() else NO_TOKENIZER,
    )  # fmt: skip
