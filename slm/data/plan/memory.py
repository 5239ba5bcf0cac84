"""What plans were made of, by hash: so that a changed plan can be told field by field, while the loader's state stays a hash
and a number."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from slm.config.identity import fingerprint


def remember(cache_dir: Path | str | None, plan: str, described: dict[str, Any]) -> None:
    """Note down a plan's description. Only an error message depends on it, so a full disk is no reason to stop."""
    if cache_dir is None or (path := _path(cache_dir, plan)).exists():
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "w") as file:
            json.dump(described, file, indent=1)
        os.replace(name, path)


def recall(cache_dir: Path | str | None, plan: str) -> dict[str, Any] | None:
    """The description of a plan that was seen before, if it is still known."""
    if cache_dir is None:
        return None
    try:
        described = json.loads(_path(cache_dir, plan).read_text())
    except (OSError, ValueError):
        return None
    return described if isinstance(described, dict) and fingerprint(described) == plan else None


def _path(cache_dir: Path | str, plan: str) -> Path:
    return Path(cache_dir) / "described" / f"{plan}.json"
