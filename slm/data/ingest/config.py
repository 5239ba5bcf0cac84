"""What decides which documents of a source get into a store, where, and in which order."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Literal

import pydantic

from slm.config.base import Config, Seed
from slm.data.curate.decontaminate import Decontaminate
from slm.data.curate.quality import Quality


class Curation(Config):
    """Which documents are kept, which of them are held out, and how they are ordered. Part of a store's identity."""

    heldout: float = pydantic.Field(0.01, ge=0, lt=1)
    """Share of documents kept for evaluation, chosen by a hash of their id."""
    filters: tuple[str, ...] = ()
    """Predicates on the source's columns that a document must all meet, such as ``int_score >= 3``."""
    dedup: Literal["exact", "normalized", "off"] = "exact"
    """Drop repeated texts, keeping the first: byte for byte, or up to case, white space and Unicode form."""
    decontaminate: Decontaminate | None = None
    """Evaluation sets: a document that shares a run of words with one of them is dropped."""
    quality: Quality | None = None
    """Score documents by a fastText model; the score becomes a column, for filters."""
    shuffle: bool = True
    """Store documents in a uniformly random order; else in the source's order."""
    shuffle_seed: Seed = 0
    """Seed of that order."""


def identity_of(curation: Curation) -> dict[str, Any]:
    """The curation as plain data, with the contents of the files that it names."""
    return {
        **curation.model_dump(mode="json"),
        "decontaminate": curation.decontaminate
        and _index_hash(curation.decontaminate.model_dump_json(), _stamps(curation.decontaminate)),
        "quality": curation.quality and [curation.quality.label, curation.quality.column, curation.quality.sha256()],
    }


def _stamps(rule: Decontaminate) -> tuple[tuple[int, int], ...]:
    """Size and time of every file of the evaluation sets."""
    stats = [file.stat() for name, source in rule.sets.items() for file in source.files(name)]
    return tuple((s.st_size, s.st_mtime_ns) for s in stats)


@lru_cache(maxsize=16)
def _index_hash(rule: str, stamps: tuple[tuple[int, int], ...]) -> str:
    """Of the index of evaluation sets; a run asks several times, and each answer reads all of them."""
    return Decontaminate.model_validate_json(rule).build().sha256


def is_heldout(doc_id: str, share: float) -> bool:
    """Whether a document is kept for evaluation: a hash of its id, so that other documents don't matter."""
    return share > 0 and hash64(f"heldout:{doc_id}") < share * 2**64


def hash64(text: str) -> int:
    """64 bits of the SHA-256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
