"""A sample of training text for a tokenizer that learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slm.data.curate.dedup import hash_text
from slm.data.document import Broken
from slm.data.ingest.config import Curation, is_heldout
from slm.data.ingest.screen import Screen
from slm.data.sources import SourcePart
from slm.data.tokenizer import TokenizerPart, Trained


def sample(sources: Sequence[tuple[SourcePart, Curation]], limit: int) -> Iterator[str]:
    """Texts that would be trained on, about ``limit`` bytes: of every unit in proportion to its size.

    What is held out or dropped is never in it, nor is any text twice.
    """
    units = [(source, curation, unit) for source, curation in sources for unit in source.units()]
    total = sum(unit.bytes for *_, unit in units)
    screens = {id(curation): Screen(curation) for _, curation in sources}
    seen = set[bytes]()
    for source, curation, unit in units:
        quota = limit if total <= limit else max(1 << 16, limit * unit.bytes // total)
        screen = screens[id(curation)]
        for record in source.read(unit):
            if isinstance(record, Broken):
                source.refuse(record)
                continue
            key = hash_text(record.text)
            if is_heldout(record.id, curation.heldout) or key in seen:
                continue
            if screen.reason(screen.enriched(record)) is None:
                seen.add(key)
                yield record.text
                quota -= len(record.text.encode())
                if quota <= 0:
                    break


def sample_size(part: TokenizerPart) -> int:
    """How much text a tokenizer wants to learn from, in bytes; 0 for one that doesn't learn."""
    return part.sample_bytes if isinstance(part, Trained) else 0
