"""The manifest of a store: written last, and its own checksum in it, so that not one bit of it can change unseen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from slm.config.errors import RunError
from slm.config.files import replace_durably

FORMAT = 2
SPLITS = ("train", "heldout")
_REQUIRED = {"dtype", "block", "tokenizer", "splits", "accounting", "content_sha256"}


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json``; with it the directory becomes a store."""
    replace_durably(folder / "manifest.json", _serialised(manifest))


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a store. Raises `RunError` if there is none, or not exactly what was written."""
    file = folder / "manifest.json"
    try:
        raw = file.read_bytes()
        manifest = json.loads(raw)
    except FileNotFoundError:
        what = "is not finished (it has no manifest.json)" if folder.is_dir() else "does not exist"
        raise RunError(f"The token store {folder} {what}.") from None
    except ValueError as error:
        raise RunError(f"{file}: not valid JSON ({error}). Remove the store and make it again.") from None
    written_in = manifest.get("format") if isinstance(manifest, dict) else None
    if written_in != FORMAT:
        raise RunError(
            f"{file}: written in format {written_in!r}; this slm reads format {FORMAT}. Remove the store and make it again."
        )
    if missing := sorted(_REQUIRED - set(manifest)):
        raise RunError(f"{file}: lacks {', '.join(missing)}. Remove the store and make it again.")
    if raw != _serialised({k: v for k, v in manifest.items() if k != "checksum"}):
        raise RunError(f"{file}: not as it was written (its checksum differs). Remove the store and make it again.")
    return manifest  # type: ignore[no-any-return]


def content_hash(tokenizer: dict[str, Any], splits: dict[str, list[dict[str, Any]]]) -> str:
    """SHA-256 over the tokenizer and the documents of every shard, in order: equal for stores of equal tokens."""
    hashes = [tokenizer["sha256"], {name: [e["sha256"] for e in splits[name]] for name in SPLITS}]
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _serialised(manifest: dict[str, Any]) -> bytes:
    body = json.dumps(manifest, indent=1, sort_keys=True)
    checksum = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**manifest, "checksum": checksum}, indent=1, sort_keys=True).encode()
