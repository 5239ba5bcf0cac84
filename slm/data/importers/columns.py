"""Tokens in a column of jsonl or parquet, as Nemotron-ClimbMix has them: ``{"tokens": [464, 3290, ...], ...}``.

ClimbMix's are ids of GPT-2, without marks. Lists of numbers can't be used where they are: the tokens are copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from slm.config.errors import ConfigError, RunError, suggest
from slm.data.curate.records import is_readable, kind_of, records
from slm.data.document import Broken
from slm.data.importers.base import TokenListImporter, importer
from slm.data.importers.marks import check_marks, unnamed_mark


@importer.register("columns", paper="Diao et al. 2025, arXiv 2504.13161")
class Columns(TokenListImporter):
    """A column of token ids in .jsonl (.gz, .zst) or .parquet, such as Nemotron-ClimbMix's."""

    tokens_field: str = "tokens"
    """The column that holds the ids."""
    id_field: str | None = None
    """The column that names the document; null: the file's name and the row's number."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with a record that has no valid list of ids."""

    @classmethod
    def claims(cls, path: Path) -> bool:
        return is_readable(path) and kind_of(path)[0] in (".jsonl", ".parquet") and "tokens" in _columns(path)

    def read(self, path: Path, vocab_size: int) -> Iterator[tuple[str, np.ndarray] | Broken]:
        if not is_readable(path) or kind_of(path)[0] not in (".jsonl", ".parquet"):
            raise ConfigError(
                f"{path}: unknown kind of file. Columns of tokens are read from .jsonl (.gz, .zst) and .parquet."
            )
        known = _columns(path)
        for name in (self.tokens_field, self.id_field):
            if name is not None and known and name not in known:
                raise ConfigError(f"{path}: has no column {name!r}. {suggest(name, known)}")
        check_marks(path, self, vocab_size)
        ends = _Alike("eos", "end", self.eos), _Alike("bos", "begin", self.bos)
        for number, (where, record) in enumerate(records(path)):
            try:
                ids = self._ids(record, vocab_size)
                name = f"{path.name}:{number}" if self.id_field is None else record[self.id_field]
                if name is None:
                    raise ValueError(f"{self.id_field!r} is null")
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                why = f"no key {error}" if isinstance(error, KeyError) else str(error)
                if self.on_error == "fail":
                    raise RunError(f"{where}: {why}. Mend the file, or pass on_error=skip.") from None
                yield Broken(where, why)
                continue
            if len(ids):
                for end, at in zip(ends, (-1, 0), strict=True):
                    end.see(int(ids[at]))
                yield str(name), ids
            else:
                yield Broken(where, "no tokens", "empty")
        for end in ends:
            if not self.unmarked:
                end.complain(path)

    def _ids(self, record: Any, vocab_size: int) -> np.ndarray:
        if not isinstance(record, dict):
            raise TypeError(f"is {type(record).__name__}, not a record")
        given = record[self.tokens_field]
        ids = np.asarray(given if given is not None else [None])
        if ids.ndim != 1 or (ids.dtype.kind not in "iu" and len(ids)):
            raise TypeError(f"{self.tokens_field!r} is no list of ids")
        if len(ids) and (ids.min() < 0 or ids.max() >= vocab_size):
            wrong = int(ids[(ids < 0) | (ids >= vocab_size)][0])
            raise ValueError(f"id {wrong}, but the tokenizer has ids from 0 to {vocab_size - 1}: it is another one")
        ids = ids.astype("<u4")
        for name, mark, at, rest in (("eos", self.eos, -1, slice(0, -1)), ("bos", self.bos, 0, slice(1, None))):
            if mark is None or not len(ids):
                continue
            if ids[at] == mark:
                ids = ids[rest]
            elif not self.pieces:
                raise ValueError(
                    f"doesn't {'end' if name == 'eos' else 'begin'} with {name}={mark}, but with {ids[at]}"
                )
        return ids


class _Alike:
    """Notices if all documents end (or begin) with one id, though no mark is named."""

    def __init__(self, name: str, verb: str, mark: int | None) -> None:
        self.name, self.verb, self.seen = name, verb, 0 if mark is None else -1
        self.id: int | None = None

    def see(self, id_: int) -> None:
        if self.seen >= 0:
            self.id = id_ if self.seen == 0 else self.id
            self.seen = self.seen + 1 if id_ == self.id else -1

    def complain(self, path: Path) -> None:
        if self.seen > 1:
            raise ConfigError(unnamed_mark(path, self.seen, self.verb, self.name, self.id))


def _columns(path: Path) -> list[str]:
    """Names of the columns: the schema's, or the first record's keys."""
    if kind_of(path)[0] == ".parquet":
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(path).names)
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: is no readable parquet file ({error}).") from None
    for _, record in records(path):
        return list(record) if isinstance(record, dict) else []
    return []
