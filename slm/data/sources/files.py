"""Sources that are files: parquet, JSON lines, JSON arrays, text; plain or compressed; here or behind a URL.

`FileSource` does all the work; a *layout* says where a dataset's files lie and what their columns are
called. A layout of your own is a few lines in a module that your recipe lists under ``plugins``::

    @source.register("diaries")
    class Diaries(FileSource):
        '''Diaries: `year/month.jsonl.gz`, a day per line. CC0.'''
        def layout(self) -> Layout:
            return Layout(("[0-9]*/*",), (".jsonl.gz",), text="entry", columns={"year": "date.year"})
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import pydantic

from slm.config.errors import ConfigError, suggest
from slm.data.document import Broken, Document, Unit
from slm.data.sources.base import SourcePart
from slm.data.sources.listing import File, distinct_names, list_files
from slm.data.sources.parquet import Footer, footer, is_text, read_parquet, type_of
from slm.data.sources.records import Fields
from slm.data.sources.text import COMPRESSION, FORMATS, format_of, read_text
from slm.data.sources.units import UNIT_BYTES, UNIT_ROWS, cut_parquet, cut_text, join_small, members, place

SUFFIXES = tuple(s + c for s, kind in FORMATS.items() for c in (COMPRESSION if kind != "parquet" else {"": None}))
"""Names of files that slm reads end so."""
SEARCHED = tuple(s for s in SUFFIXES if s != ".json")
"""Those that are looked for in a directory: a lone .json is metadata more often than data, so it has to be named."""


@dataclass(frozen=True)
class Layout:
    """Where the files of a dataset lie below its directory, and what their columns are called."""

    globs: tuple[str, ...] = ()
    """Patterns below the dataset's directory, each of which must name a file (``**`` spans directories)."""
    suffixes: tuple[str, ...] = (".parquet",)
    inside: tuple[tuple[str, ...], ...] = ()
    """Patterns to try instead, one set after the other, if a directory within the dataset is given."""
    text: str = "text"
    id: str = "id"
    """The fields; dots go into nested records."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Name in `Document.meta` -> field."""
    signs: frozenset[str] = frozenset()
    """Columns by which files that lie so are recognised (nested ones by dots); none: never recognised."""
    no_text: str = ""
    """What to say if there is no text column."""


def same(*names: str) -> dict[str, str]:
    """Columns that keep their names."""
    return {name: name for name in names}


class RecordSource(SourcePart):
    """Files of records, however they are found."""

    text_field: str = ""
    """The field that holds the text (dots go into nested records); empty: the layout's."""
    id_field: str = ""
    """The field that holds the id; empty: the layout's, or file and line where a record has none."""
    columns: tuple[str, ...] | Literal["layout", "all"] = "layout"
    """Columns that filters can use and the store keeps: ``layout`` for the usual ones, ``all``, or a list."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with what can't be read: stop, or leave it out and count it."""
    max_document_bytes: int = pydantic.Field(100_000_000, gt=0)
    """A longer document (or line of JSON) counts as broken, under the rule ``too_long``."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _spellings(cls, given: Any) -> Any:
        """``path`` for ``paths``, and a single value for a list of one."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        if "paths" in cls.model_fields and "path" in given and "paths" not in given:
            given["paths"] = given.pop("path")
        for name in cls.model_fields.keys() & given.keys():
            many = "tuple" in str(cls.model_fields[name].annotation)
            if many and isinstance(given[name], (str, int)) and given[name] not in ("???", "layout", "all"):
                given[name] = (given[name],)
        return given

    def layout(self) -> Layout:
        """Where the files lie and what their columns are called, given this part's settings."""
        raise NotImplementedError

    def files(self) -> list[File]:
        """The files, in order. Raises `ConfigError` if there are none."""
        raise NotImplementedError

    def units(self, rows: int = UNIT_ROWS, size: int = UNIT_BYTES) -> list[Unit]:
        """Parquet files by row groups, plain files of lines by ranges of bytes, compressed files whole.

        Raises:
            ConfigError: no files, or a parquet file without a column of text.
        """
        with ThreadPoolExecutor(8) as pool:  # footers of files on a network take a round trip each
            pieces = [unit for found in pool.map(lambda f: self._cut(f, rows, size), self.files()) for unit in found]
        return join_small(pieces)

    def read(self, unit: Unit) -> Iterator[Document | Broken]:
        for member in members(unit):
            name, first = place(member)
            fields = self._fields(name)
            if format_of(name) == "parquet":
                yield from read_parquet(member.uri, name, member.part, fields)
            else:
                yield from read_text(replace(member, name=name), first, fields, lines=self._text_in_lines())

    def state(self) -> list[tuple[str, int, str | int]]:
        return [(file.name, file.size, file.tag) for file in self.files()]

    def _text_in_lines(self) -> bool:
        """Whether a file of plain text is a document a line."""
        return False

    def _skips(self) -> bool:
        return self.on_error == "skip"

    def _cut(self, file: File, rows: int, size: int) -> list[Unit]:
        if format_of(file.name) != "parquet":
            return cut_text(file, size, text_in_lines=self._text_in_lines())
        end = footer(file.uri, file.size, file.tag)
        if isinstance(end, str):  # reading it will say what is wrong
            return [Unit(file.name, file.uri, file.size)]
        self._check_columns(file, end)
        return cut_parquet(file, end, rows, size)

    def _check_columns(self, file: File, end: Footer) -> None:
        """Raise `ConfigError` if a parquet file can't have a document in any row."""
        text, given = self._fields(file.name).text, self.id_field
        kind = type_of(end.schema, text)
        if kind is None:
            why = self.layout().no_text or suggest(text, end.schema.names)
            raise ConfigError(f"{file.uri} has no column {text!r}. {why} Say with text_field which column is the text.")
        if not is_text(kind):
            raise ConfigError(
                f"{file.uri}: the column {text!r} holds {kind}, not text. Name another one with text_field."
            )
        if given and type_of(end.schema, given) is None:
            raise ConfigError(f"{file.uri} has no column {given!r} (id_field). {suggest(given, end.schema.names)}")

    def _fields(self, name: str) -> Fields:
        layout = self.layout()
        columns: dict[str, str] | None = None
        if self.columns == "layout":
            columns = dict(layout.columns)
        elif self.columns != "all":
            columns = {column: layout.columns.get(column, column) for column in self.columns}
        return Fields(
            text=self.text_field or layout.text,
            id=self.id_field or layout.id,
            id_required=bool(self.id_field),
            columns=columns,
            limit=self.max_document_bytes,
            partitions=_partitions(name),
        )


def _partitions(name: str) -> dict[str, str]:
    """Columns that the directories above a file spell out, such as ``quality=high``."""
    return dict(re.findall(r"(?:^|/)([A-Za-z_]\w*)=([^/]+)(?=/)", name))


class FileSource(RecordSource):
    """Files that paths, patterns or URLs name, in a known layout."""

    positional: ClassVar[str] = "paths"
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Settings to try when a directory is to be recognised."""

    paths: tuple[str, ...] = pydantic.Field(min_length=1)
    """Files, directories (searched recursively), glob patterns, or URLs that fsspec knows (s3://, hf://datasets/...)."""

    def files(self) -> list[File]:
        """The files that the paths name, in order. Raises `ConfigError` for a path that names none."""
        layout = self.layout()
        found: list[File] = []
        for given in self.paths:
            listing = list_files(given)
            if listing.directory:
                found += listing.select(layout.globs, layout.suffixes, layout.inside)
            else:
                found += listing.files
        for file in found:
            if not file.name.lower().endswith(SUFFIXES):
                raise ConfigError(f"{file.uri}: unknown kind of file. slm reads {', '.join(SUFFIXES)}.")
        return sorted(distinct_names(found), key=lambda file: file.uri.split("/"))

    def _whereabouts(self) -> str:
        return f" (In {', '.join(self.paths)}.)"
