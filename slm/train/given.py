"""Weights that a run is given: to start from, or as a teacher."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from slm.checkpoint import describe, resolve, restore
from slm.checkpoint.fingerprint import is_hugging_face, weights_hash
from slm.checkpoint.restore import shape_of
from slm.config.errors import ConfigError, SlmError
from slm.data.tokenizer import Tokenizer
from slm.model.config import Model
from slm.model.decoder import Decoder


@dataclass(frozen=True)
class Given:
    """A model in evaluation mode. ``tokenizer``: its file's bytes, None if it came without."""

    model: Decoder
    tokenizer: bytes | None
    path: Path


def open_given(path: str, expected: str | None, field: str, *, device: torch.device | str = "cpu") -> Given:
    """Load a run's newest checkpoint, a step directory, or a Hugging Face directory.

    Args:
        expected: the hash that the experiment is defined with; None takes what is there.
        field: what is said to be wrong in errors.

    Raises:
        ConfigError: other weights than ``expected``; a model that slm can't read.
        RunError: nothing there, or it is damaged.
    """
    if expected is not None and (found := weights_hash(path)) != expected:
        raise ConfigError(
            f"{field}={path}: these are not the weights that the experiment is defined with (theirs are named {found}, its {expected}): they "
            f"were trained on or replaced. Give the path of the right ones, or set {field}_hash=null to define another experiment."
        )
    if not is_hugging_face(Path(path)):
        restored = restore(path, device=device)
        known = restored.tokenizer.strip() not in (b"", b"{}")
        return Given(restored.model, restored.tokenizer if known else None, restored.path)
    from slm.export.importing import read_directory

    file = Path(path) / "tokenizer.json"
    model = read_directory(Path(path)).model.to(device).eval()
    return Given(model, file.read_bytes() if file.is_file() else None, Path(path))


def given_config(path: str) -> Model:
    """The shape of the model that `open_given` would load.

    Raises:
        ConfigError: a model that slm can't read.
        RunError: nothing there.
    """
    if not is_hugging_face(Path(path)):
        found = resolve(path)
        return shape_of(describe(found)[0], found)
    from slm.export.importing import read_config

    return read_config(Path(path))[1]


def same_tokenizer(theirs: bytes, ours: bytes) -> bool:
    """Whether ids mean the same text by two tokenizers' files. Their spacing, where they are JSON, means nothing, nor does a mark of the
    token that ends a text (``tokenizer.eot``), which ours may have and theirs not."""
    if theirs == ours or _meaning(theirs) == _meaning(ours):
        return True
    try:
        marked = Tokenizer.from_bytes(theirs, Tokenizer.from_bytes(ours).eot).to_bytes()
    except (SlmError, ValueError, KeyError):
        return False
    return _meaning(marked) == _meaning(ours)


def tokenizer_at(path: Path) -> Path:
    """The tokenizer's file of a checkpoint or a Hugging Face directory; where it would be, if there is none."""
    return next(iter(sorted(path.glob("tokenizer.*"))), path / "tokenizer.json")


def _meaning(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def load_given(model: Decoder, path: str, expected: str | None, tokenizer: bytes) -> None:
    """Fill a model with the weights that ``train.init_from`` names.

    Args:
        tokenizer: the file of the one that this run's text was tokenised with.

    Raises:
        ConfigError: as `open_given`; the first tensor that one of the models lacks, or has in another shape; another tokenizer.
        RunError: as `open_given`.
    """
    given = open_given(path, expected, "train.init_from")
    if given.tokenizer is not None and not same_tokenizer(given.tokenizer, tokenizer):
        raise ConfigError(
            f"train.init_from={path}: its weights were trained with another tokenizer than this run's text was made with: the ids mean other "
            f"text. Take theirs: tokenizer=file tokenizer.path={tokenizer_at(given.path)}."
        )
    theirs = dict(given.model.named_parameters())
    ours = dict(model.named_parameters())
    for name in [*ours, *theirs]:
        a, b = (tuple(have[name].shape) if name in have else None for have in (ours, theirs))
        if a != b:
            said = [f"{shape or 'no such tensor'}" for shape in (a, b)]
            way_out = (
                f"`slm model import {path}`"
                if is_hugging_face(Path(path))
                else f"the model section of {given.path / 'config.yaml'}"
            )
            raise ConfigError(
                f"train.init_from={path}: its weights don't fit this run's model. The first that differs is {name!r}: {said[0]} here, "
                f"{said[1]} there. Take {way_out}, or prune it to this shape with `slm model prune`."
            )
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(theirs[name])
