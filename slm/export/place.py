"""Where an export goes: what may be replaced there, and how that happens at once.

An export replaces a whole directory, so a wrong ``--out`` must never cost anybody anything: only an empty
directory or an earlier export of slm is replaced. The new one is written beside it under a name of its own,
and the two are exchanged by renaming, so that a failure at any moment leaves the old one in place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slm.config.errors import ConfigError
from slm.export.card import SIGNATURE

FILES = frozenset(
    (
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    )
)
"""What an export consists of."""


def refuse_to_replace(out: Path) -> None:
    """Raise `ConfigError` unless ``out`` is absent, an empty directory or an earlier export."""
    if not os.path.lexists(out):
        return
    advice = "Choose another directory with --out."
    if out.is_symlink() or not out.is_dir():
        raise ConfigError(f"{out} is a file or a link, and an export is a directory. {advice}")
    if out.resolve() == Path.cwd():
        raise ConfigError(f"{out} is the current directory; an export replaces its whole directory. {advice}")
    names = sorted(entry.name for entry in out.iterdir())
    foreign = [name for name in names if name not in FILES]
    if foreign:
        raise ConfigError(
            f"{out} holds {foreign[0]!r}, which no export wrote; an export replaces its whole directory. {advice}"
        )
    if names and not _signed(out / "README.md"):
        raise ConfigError(f"{out} holds a model that wasn't exported by slm, so it isn't replaced. {advice}")


@contextmanager
def put(out: Path) -> Iterator[Path]:
    """Give an empty directory to fill; if the body succeeds, it takes the place of ``out``, else it is removed."""
    place = out.resolve()  # "a/.." has no name to rename to
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))  # its name is nobody else's
    new, old = aside / "new", aside / "old"
    try:
        new.mkdir()
        yield new
        refuse_to_replace(out)  # again: writing and verifying took a while
        if place.exists():
            os.rename(place, old)
        try:
            os.rename(new, place)
        except OSError:
            if old.exists():
                os.rename(old, place)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _signed(card: Path) -> bool:
    return card.is_file() and SIGNATURE in card.read_text(encoding="utf-8", errors="replace")
