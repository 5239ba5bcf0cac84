"""Filters: predicates on a document's columns, written as text.

::

    int_score >= 3
    language == "en" and language_score >= 0.65
    1000 <= bytes < 100000
    metadata.score > 2.5 or metadata.score is null
    url ~ "\\.(edu|gov)(/|$)" and not (dump in ["CC-MAIN-2013-20", "CC-MAIN-2013-48"])
    metadata["WARC-Type"] == "response"

Names are columns of the source (dots and ``["..."]`` go into records), and five that every document has: ``id``,
``text``, ``chars`` and ``bytes`` (the length of the text in code points and in UTF-8), ``length`` (= ``chars``). A source's own
column of such a name is ``column.length``.

A missing value (null, NaN, no such key) makes a comparison *unknown*, as in SQL: neither it nor its ``not`` holds, and a
document is dropped unless the rest of the filter decides. Such drops are counted under a rule of their own,
``<filter>:null``. To keep documents that lack a value, say so: ``score >= 3 or score is null``.

Texts stand in plain quotes and are taken as they are: a backslash belongs to the regular expression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from slm.config.errors import ConfigError, RunError, suggest
from slm.data.curate import expression as ex
from slm.data.curate.cells import cell, cells, kind_of
from slm.data.curate.grammar import parse
from slm.data.document import Document

BUILTINS = ex.BUILTINS
"""Columns that every document has. Of a table, ``bytes`` and ``chars`` are columns or come from ``text``."""


@dataclass(frozen=True)
class Filter:
    """A predicate on documents. Make one with `Filter.parse`."""

    text: str
    tree: ex.Node

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Read a filter. Raises `ConfigError` that names the place of the fault."""
        return cls(text, parse(text))

    def keep(self, document: Document) -> bool:
        """Whether the document passes. Raises `RunError` if a column holds what can't be compared as asked."""
        return self._truth(document) == ex.TRUE

    def reason(self, document: Document) -> str | None:
        """None if the document passes, else the rule to count it under: the filter, or ``<filter>:null``."""
        return self.rule(self._truth(document))

    def rule(self, truth: int) -> str | None:
        """The rule to count a document under, given one value of `truths`."""
        return {ex.TRUE: None, ex.FALSE: self.text, ex.UNKNOWN: f"{self.text}:null"}[int(truth)]

    def mask(self, table: pa.Table) -> np.ndarray:
        """Which rows pass: bool of shape (rows,). The same answers as `keep`; errors as there and in `check`."""
        return self.truths(table) == ex.TRUE

    def truths(self, table: pa.Table) -> np.ndarray:
        """Per row 1 (passes), -1 (fails) or 0 (unknown for want of a value): int8 of shape (rows,)."""
        with _Explained(self.text):
            return self.tree.truths(lambda column: cells(_of_table(table, column, self.text)))

    @cached_property
    def columns(self) -> set[str]:
        """Columns of the source that the filter looks at, with dots for fields of records; no built-ins."""
        return {c.name for c in _columns(self.tree) if not isinstance(c, ex.BuiltIn)}

    @cached_property
    def builtins(self) -> set[str]:
        """Which of `BUILTINS` the filter looks at."""
        return {c.name for c in _columns(self.tree) if isinstance(c, ex.BuiltIn)}

    def check(self, columns: Iterable[str]) -> None:
        """Raise `ConfigError` if a source with these columns lacks one of the filter's.

        ``columns`` are top-level names, with dots where the fields of records are known.
        """
        known = set(columns)
        for name in sorted(self.columns):
            roots = {".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 2)}
            inside = any(k.startswith(f"{name}.") for k in known)
            open_roots = {r for r in roots & known if r == name or not any(k.startswith(f"{r}.") for k in known)}
            if not inside and not open_roots:
                raise ConfigError(_unknown(self.text, name, known))

    def _truth(self, document: Document) -> int:
        with _Explained(self.text):
            return self.tree.truth(lambda column: cell(_of_document(document, column)))


class _Explained:
    """Turns a `Mismatch` into an error that names the filter. (A class: cheaper than a generator, once a document.)"""

    def __init__(self, text: str) -> None:
        self.text = text

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, ex.Mismatch):
            raise RunError(f"Filter {self.text!r}: {error}. Change the filter, or the column's type.") from None


def _columns(node: Any) -> Iterator[ex.Column]:
    if isinstance(node, ex.Column):
        yield node
    elif isinstance(node, tuple):
        for part in node:
            yield from _columns(part)
    elif hasattr(node, "__dataclass_fields__"):
        for field in fields(node):
            yield from _columns(getattr(node, field.name))


def _of_document(document: Document, column: ex.Column) -> Any:
    if isinstance(column, ex.BuiltIn):
        return _BUILT[column.name](document)
    value: Any = document.meta
    if column.name in value:
        return value[column.name]
    for i, key in enumerate(column.path):
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ex.Mismatch(f"column {'.'.join(column.path[:i])!r} holds {kind_of(value)}, not a record")
        value = value.get(key)
    return value


_BUILT: dict[str, Callable[[Document], Any]] = {
    "id": lambda d: d.id,
    "text": lambda d: d.text,
    "chars": lambda d: len(d.text),
    "length": lambda d: len(d.text),
    "bytes": lambda d: len(d.text.encode("utf-8", "surrogatepass")),
}


def _of_table(table: pa.Table, column: ex.Column, text: str) -> pa.ChunkedArray:
    name = {"length": "chars"}.get(column.name, column.name) if isinstance(column, ex.BuiltIn) else column.name
    if isinstance(column, ex.BuiltIn) and name in ("chars", "bytes") and "text" in table.column_names:
        measured = table["text"].cast(pa.large_string())
        return pc.utf8_length(measured) if name == "chars" else pc.binary_length(measured)
    if name in table.column_names:
        return table[name]
    if isinstance(column, ex.BuiltIn) or column.path[0] not in table.column_names:
        raise ConfigError(_unknown(text, name, table.column_names))
    array = table[column.path[0]]
    for i, key in enumerate(column.path[1:], start=1):
        if pa.types.is_null(array.type):
            return array
        if not pa.types.is_struct(array.type):
            raise ex.Mismatch(f"column {'.'.join(column.path[:i])!r} holds {array.type}, not a record")
        if array.type.get_field_index(key) < 0:
            inner = [".".join((*column.path[:i], f.name)) for f in array.type]
            raise ConfigError(_unknown(text, column.name, inner))
        array = pc.struct_field(array, key)
    return array


def _unknown(text: str, name: str, known: Iterable[str]) -> str:
    at = text.find(name)
    where = f" (at character {at + 1})" if at >= 0 else ""
    return f"Filter {text!r}: there is no column {name!r}{where}. {suggest(name, [*known, *BUILTINS])}"
