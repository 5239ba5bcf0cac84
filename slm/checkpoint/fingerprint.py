"""A name for weights: equal for the same weights of the same model, wherever they lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import yaml

from slm.checkpoint.layout import group_of, resolve
from slm.checkpoint.restore import AVERAGE
from slm.config.errors import ConfigError, RunError
from slm.config.identity import fingerprint


def is_hugging_face(path: Path) -> bool:
    """Whether a directory looks like a Hugging Face checkpoint, and not like one of slm."""
    return (path / "config.json").is_file() and not (path / "manifest.json").is_file()


def weights_hash(path: Path | str) -> str:
    """16 hex digits that name the weights and the model they belong to.

    Of a checkpoint of slm they come from the sizes and checksums in its manifest, so nothing large is read; loading it
    compares those checksums. (So a sharded checkpoint and its merged copy have two names.) A Hugging Face directory has none: its files are hashed whole (SHA-256, about a second per GB).

    Raises:
        ConfigError: a Hugging Face directory without safetensors.
        RunError: no checkpoint there.
    """
    if is_hugging_face(Path(path)):
        return _of_hugging_face(Path(path))
    found = resolve(path)
    try:
        files = json.loads((found / "manifest.json").read_text())["files"]
        model = yaml.safe_load((found / "config.yaml").read_text())["model"]
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise RunError(f"{found}: its manifest or config can't be read ({error}).") from None
    used = AVERAGE if any(group_of(name) == AVERAGE for name in files) else "model"
    return fingerprint({"model": model, "files": {n: entry for n, entry in files.items() if group_of(n) == used}})


def _of_hugging_face(path: Path) -> str:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{path} has a config.json but no *.safetensors: slm reads weights from safetensors.")
    hashed = {}
    for file in [path / "config.json", *files]:
        with file.open("rb") as opened:
            hashed[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return fingerprint(hashed)
