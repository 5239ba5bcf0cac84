"""Which importer reads what is at a path: by names, neighbours and first bytes."""

from __future__ import annotations

from pathlib import Path

from slm.config.errors import ConfigError, suggest
from slm.data.importers.base import importer


def detect(path: Path) -> str:
    """The name of the importer. Raises `ConfigError` if none reads it, or if a directory has files of several."""
    if not path.exists():
        near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise ConfigError(f"{path}: doesn't exist. {near}".strip())
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found: dict[str, Path] = {}
    for file in files:
        for name, part in importer.parts.items():
            target = part().named(file)
            if target.is_file() and part.claims(target):
                found.setdefault(name, file)
    if len(found) == 1:
        return next(iter(found))
    formats = ", ".join(importer.parts)
    if found:
        examples = "; ".join(f"{name} ({file.name})" for name, file in found.items())
        raise ConfigError(f"{path}: files of several formats: {examples}. Import one at a time, and name the format.")
    raise ConfigError(
        f"{path}: no format of ready-made tokens that slm knows ({formats}) is in it. If it is one of them, name the format."
    )
