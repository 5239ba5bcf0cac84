"""Decontamination: documents that hold a piece of an evaluation set.

A document is contaminated if it shares a run of ``n`` = 13 words with an item of an evaluation set, after the normalisation
of `ngrams`. This is the rule of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C), which measures with runs of 8
to 13 words and removes with 13, and of FineMath, which drops pages by 13-gram overlap with GSM8K, MATH, MMLU and ARC. DCLM
(Li et al. 2024, arXiv 2406.11794) instead measured overlap after the fact. Unlike GPT-3, slm drops the whole
document rather than a window of it, and makes no exception for runs that occur often: what was dropped is
counted per evaluation set, so that a boilerplate sentence in a set is seen.

Items shorter than ``n`` words have no n-grams. Those with at least ``shortest`` = 8 words are found whole; the rest
(arithmetic, single words) can't be told from chance and is counted as not covered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pydantic

from slm.config.base import Config
from slm.config.errors import ConfigError, RunError, suggest
from slm.config.files import replace_durably
from slm.data.curate.ngrams import pieces
from slm.data.curate.records import is_readable, records
from slm.data.document import Document

FORMAT = "slm-ngrams-1"


class EvalSet(Config):
    """The texts of an evaluation set."""

    paths: tuple[str, ...] = pydantic.Field(min_length=1)
    """Files (.jsonl, .json, .txt, also .gz and .zst; .parquet), or directories of such, searched recursively."""
    fields: tuple[str, ...] = ()
    """Which fields hold texts (``question``, ``choices.text``); none means every text in a record, each on its own."""

    def files(self, name: str) -> list[Path]:
        """The files that the paths name, sorted. Raises `ConfigError` for a path that names none."""
        found: set[Path] = set()
        for given in self.paths:
            path = Path(given).expanduser()
            matches = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and is_readable(p)]
            if not matches:
                near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
                raise ConfigError(f"Evaluation set {name!r}: {given!r} names no file. {near}".strip())
            found.update(matches)
        return sorted(found)


class Decontaminate(Config):
    """Which evaluation sets no document may share words with."""

    sets: dict[str, EvalSet] = pydantic.Field(min_length=1)
    """Evaluation sets by name."""
    n: int = pydantic.Field(13, ge=2, le=64)
    """Words of a run that counts as shared."""
    shortest: int = pydantic.Field(8, ge=2)
    """Items with fewer than ``n`` words, but at least this many, are found whole."""

    @pydantic.model_validator(mode="after")
    def _shortest_is_shorter(self) -> Self:
        if self.shortest > self.n:
            raise ConfigError(
                f"decontaminate: shortest={self.shortest} is more than n={self.n}. Items with n words have n-grams."
            )
        return self

    def build(self) -> "Index":
        """Read the sets and index their runs of words. Raises `ConfigError` for a set without texts."""
        counts, runs, owners, lengths = {}, [], [], {self.n}
        for owner, (name, source) in enumerate(self.sets.items()):
            found, counts[name] = _index_set(name, source, self, lengths)
            runs.append(found)
            owners.append(np.full(len(found), owner, np.uint16))
        hashes, heads = np.concatenate(runs).T
        hashes, first = np.unique(hashes, return_index=True)  # a run of two sets is the first one's
        return Index([self.shortest, *sorted(lengths)], hashes, np.concatenate(owners)[first], np.unique(heads), counts)


@dataclass(frozen=True)
class Coverage:
    """How the items of an evaluation set are looked for."""

    items: int
    by_ngrams: int
    whole: int
    """Items found only as a whole: shorter than n words."""
    not_covered: int
    """Items too short to be found at all."""
    runs: int
    """Distinct runs of words in the index."""


class Index:
    """Runs of words of evaluation sets, by hash."""

    def __init__(
        self,
        lengths: Sequence[int],
        hashes: np.ndarray,
        owners: np.ndarray,
        heads: np.ndarray,
        coverage: Mapping[str, Coverage],
    ) -> None:
        """``hashes``: of the runs, uint64, ascending; ``owners``: their sets, uint16, positions in ``coverage``.

        ``lengths`` in words: first of the heads, then of the runs. ``heads``: uint64, of the first words of every run.
        """
        self.head, *self.lengths = lengths
        self.hashes, self.owners, self.heads = hashes, owners, heads
        self.coverage, self.names = dict(coverage), tuple(coverage)
        # Most places of a document start no run: a table of marks says so with one look-up, for runs of all lengths.
        bits = min(26, max(10, (len(heads) * 16).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._marks = np.zeros(1 << bits, bool)
        self._marks[heads >> self._shift] = True

    def contaminated(self, document: Document) -> str | None:
        """The name of an evaluation set that shares a run of words with the document, or None."""
        for words in pieces(document.text, max(self.lengths) - 1):
            places = np.flatnonzero(self._marks[words.ngrams(self.head) >> self._shift])
            if len(places):
                owners = np.concatenate([self._owners(words.ngrams(length, places)) for length in self.lengths])
                if len(owners):
                    return self.names[int(owners.min())]
        return None

    def _owners(self, runs: np.ndarray) -> np.ndarray:
        """Owners of those runs that are in the index."""
        at = np.minimum(np.searchsorted(self.hashes, runs), len(self.hashes) - 1)
        return self.owners[at[self.hashes[at] == runs]]

    @property
    def sha256(self) -> str:
        """Of all that the index holds: goes into the identity of what was made with it."""
        digest = hashlib.sha256(json.dumps([FORMAT, self._facts()]).encode())
        for array in (self.hashes.astype("<u8"), self.owners.astype("<u2"), self.heads.astype("<u8")):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _facts(self) -> dict[str, Any]:
        return {
            "lengths": [self.head, *self.lengths],
            "coverage": {name: asdict(c) for name, c in self.coverage.items()},
        }

    def save(self, path: Path) -> str:
        """Write the index to a file, whole or not at all; returns its `sha256`."""
        from safetensors.numpy import save

        sha = self.sha256
        header = json.dumps({"format": FORMAT, "sha256": sha, **self._facts()})
        raw = save({"hashes": self.hashes, "owners": self.owners, "heads": self.heads}, metadata={"slm": header})
        replace_durably(path, raw)
        return sha

    @classmethod
    def load(cls, path: Path, sha256: str | None = None) -> "Index":
        """Read an index. Raises `RunError` if it is damaged, or isn't the one with the given `sha256`."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {})["slm"])
                coverage = {name: Coverage(**counts) for name, counts in header["coverage"].items()}
                hashes, owners, heads = (file.get_tensor(name) for name in ("hashes", "owners", "heads"))
                index = cls(header["lengths"], hashes, owners, heads, coverage)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise RunError(f"{path}: no index of evaluation sets ({error}). Build it again.") from None
        if header.get("format") != FORMAT or index.sha256 != header.get("sha256"):
            raise RunError(f"{path}: the contents don't fit their checksum: the file is damaged. Build it again.")
        if sha256 is not None and index.sha256 != sha256:
            raise RunError(f"{path}: is index {index.sha256[:12]}, but {sha256[:12]} is needed. Build it again.")
        return index


def _index_set(name: str, source: EvalSet, rule: Decontaminate, lengths: set[int]) -> tuple[np.ndarray, Coverage]:
    """The distinct runs of a set with their heads, uint64 of shape (runs, 2), and how its items are covered.

    Adds the lengths of runs to ``lengths``.
    """
    runs, counts, seen = [], {"by_ngrams": 0, "whole": 0, "not_covered": 0}, set[str]()
    for path in source.files(name):
        for where, record in records(path):
            how = "not_covered"
            for text in _texts(record, source.fields, seen, where):
                found, this = _runs(text, rule, lengths)
                runs.append(found)
                how = min(how, this, key=list(counts).index)
            counts[how] += 1
    if missing := [field for field in source.fields if field not in seen]:
        raise ConfigError(
            f"Evaluation set {name!r}: no record has text in the field {missing[0]!r}. {_near(missing[0], source, name)}"
        )
    if not sum(counts.values()):
        raise ConfigError(f"Evaluation set {name!r}: its files have no records.")
    distinct = np.unique(np.concatenate([_NONE, *runs]), axis=0)
    return distinct, Coverage(items=sum(counts.values()), runs=len(distinct), **counts)


_NONE = np.empty((0, 2), np.uint64)


def _runs(text: str, rule: Decontaminate, lengths: set[int]) -> tuple[np.ndarray, str]:
    """The hashes to look for with those of their heads, and how the text is covered."""
    parts = list(pieces(text, rule.n - 1))
    length, how = rule.n, "by_ngrams"
    if len(parts) == 1 and len(parts[0]) < rule.n:
        length, how = len(parts[0]), "whole"
    found = [_NONE]
    for words in parts:
        if length >= rule.shortest and len(words) >= length:
            runs = words.ngrams(length)
            found.append(np.stack([runs, words.ngrams(rule.shortest)[: len(runs)]], axis=1))
            lengths.add(length)
    return np.concatenate(found), how if len(found) > 1 else "not_covered"


def _texts(record: Any, fields: tuple[str, ...], seen: set[str], where: str) -> Iterator[str]:
    """The texts of a record: those of ``fields`` (noted in ``seen``), or all."""
    if not fields:
        yield from _strings(record)
        return
    if not isinstance(record, dict):
        raise RunError(f"{where}: is {type(record).__name__}, and has no fields. Leave 'fields' out to take all of it.")
    for field in fields:
        for text in _strings(_inside(record, field.split("."))):
            seen.add(field)
            yield text


def _inside(value: Any, keys: list[str]) -> Any:
    """What stands under a path of keys; lists on the way are gone through."""
    if isinstance(value, list):
        return [_inside(v, keys) for v in value]
    if not keys or value is None:
        return value
    return _inside(value.get(keys[0]), keys[1:]) if isinstance(value, dict) else None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _near(field: str, source: EvalSet, name: str) -> str:
    for _, record in records(source.files(name)[0]):
        return suggest(field, list(record) if isinstance(record, dict) else [])
    return ""
