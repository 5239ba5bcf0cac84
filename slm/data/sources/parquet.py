"""Parquet: row groups as units, the needed columns alone, and every row accounted for.

Files of one dataset often disagree about their columns (FineWeb-Edu's older dumps have no ``date``), so no
schema is ever compared: a column that a file lacks is null there. Only the text must be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slm.config.errors import RunError
from slm.data.document import Broken, Document
from slm.data.sources.listing import is_url, open_file
from slm.data.sources.records import Fields, without

BATCH_BYTES, BATCH_ROWS = 8 << 20, 2048
_UNREADABLE = (OSError, pa.ArrowException, ValueError, IndexError)


@dataclass(frozen=True)
class Footer:
    """What the end of a parquet file says: rows and uncompressed bytes of each row group, and the columns.

    Nothing is asked about column chunks: of a damaged footer, that can end the process.
    """

    rows: tuple[int, ...]
    bytes: tuple[int, ...]
    schema: pa.Schema

    def fields(self) -> frozenset[str]:
        """Names of its columns, and of the fields in those that are records."""
        inner = [f"{f.name}.{one.name}" for f in self.schema if pa.types.is_struct(f.type) for one in f.type]
        return frozenset([*self.schema.names, *inner])

    def cut(self, rows: int, size: int) -> list[tuple[int, int]]:
        """Half-open ranges of row groups with about so many rows, or bytes, each."""
        pieces: list[tuple[int, int]] = []
        begin = held_rows = held_bytes = 0
        for index in range(len(self.rows)):
            if index > begin and (held_rows + self.rows[index] > rows or held_bytes + self.bytes[index] > size):
                pieces.append((begin, index))
                begin, held_rows, held_bytes = index, 0, 0
            held_rows, held_bytes = held_rows + self.rows[index], held_bytes + self.bytes[index]
        if begin < len(self.rows):
            pieces.append((begin, len(self.rows)))
        return pieces


@lru_cache(4096)
def footer(uri: str, size: int, tag: str | int) -> Footer | str:
    """A file's footer, or why it can't be read. ``size`` and ``tag`` tell a file that was changed from what it was."""
    try:
        with _opened(uri) as file:
            meta = file.metadata
            groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
            sizes = tuple(max(0, group.total_byte_size) for group in groups)
            return Footer(tuple(group.num_rows for group in groups), sizes, file.schema_arrow)
    except _UNREADABLE as error:
        return _damage(error)


def _opened(uri: str) -> pq.ParquetFile:
    """The file, if its footer makes sense: footers have no checksum."""
    remote = is_url(uri)
    file = pq.ParquetFile(
        open_file(uri), page_checksum_verification=True, pre_buffer=remote, buffer_size=0 if remote else 1 << 20
    )
    meta = file.metadata
    rows = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    if sum(rows) != meta.num_rows or min(rows, default=0) < 0:
        raise ValueError(f"its footer promises {meta.num_rows} rows, but its row groups {sum(rows)}")
    return file


def type_of(schema: pa.Schema, path: str) -> pa.DataType | None:
    """The type of a field, given by its name or by names joined by dots; None if the file has none."""
    if schema.get_field_index(path) >= 0:
        return schema.field(path).type
    head, *rest = path.split(".")
    if schema.get_field_index(head) < 0:
        return None
    kind = schema.field(head).type
    for name in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can be a document's text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, _is_bytes)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def read_parquet(uri: str, name: str, part: tuple[int, int] | None, fields: Fields) -> Iterator[Document | Broken]:
    """The rows of some row groups of a file, or of all. A row group that is damaged costs its rows, no others."""
    try:
        file = _opened(uri)
        schema, meta = file.schema_arrow, file.metadata
    except _UNREADABLE as error:
        yield Broken(name, f"not a whole parquet file ({_damage(error)})", "truncated_file")
        return
    with file:
        start, end = part or (0, meta.num_row_groups)
        if end > meta.num_row_groups:
            yield Broken(name, f"has {meta.num_row_groups} row groups, had {end} before", "truncated_file")
            return
        row = sum(meta.row_group(i).num_rows for i in range(start))
        columns = _Columns(schema, fields, name)
        for group in range(start, end):
            yield from columns.rows(file, group, row)
            row += meta.row_group(group).num_rows


class _Columns:
    """Takes the wanted columns out of record batches."""

    def __init__(self, schema: pa.Schema, fields: Fields, name: str) -> None:
        self.fields, self.name = fields, name
        if fields.columns is None:
            self.meta = {column: column for column in schema.names if column != fields.text}
        else:
            self.meta = {c: path for c, path in fields.columns.items() if type_of(schema, path) is not None}
        absent = fields.partitions if fields.columns is None else fields.columns
        self.absent = {c: fields.partitions.get(c) for c in absent if c not in self.meta}
        self.id = fields.id if type_of(schema, fields.id) is not None else None
        self.wanted = list(dict.fromkeys([fields.text, *([self.id] if self.id else []), *self.meta.values()]))

    def rows(self, file: pq.ParquetFile, group: int, first: int) -> Iterator[Document | Broken]:
        """Every row of a row group; ``first`` is the number of its first row in the file."""
        info = file.metadata.row_group(group)
        average = max(1, info.total_byte_size // max(1, info.num_rows))
        size = max(1, min(BATCH_ROWS, BATCH_BYTES // average))
        row, end = first, first + info.num_rows
        why = "has fewer rows than it promises"
        batches = file.iter_batches(size, row_groups=[group], columns=self.wanted, use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except _UNREADABLE as error:
                why = f"can't be decoded ({_damage(error)})"
                break
            if batch is None:
                break
            records = self._records(batch.slice(0, end - row), row)
            row += len(records)
            yield from records
        for lost in range(row, end):
            yield Broken(f"{self.name}, row {lost}", f"row group {group} {why}", "damaged_rows")

    def _records(self, batch: pa.RecordBatch, first: int) -> list[Document | Broken]:
        count = batch.num_rows
        texts = self._texts(_pick(batch, self.fields.text))
        ids = _values(_pick(batch, self.id)) if self.id else [None] * count
        columns = [_values(_pick(batch, path)) for path in self.meta.values()]
        metas = zip(*columns, strict=True) if columns else [()] * count
        return [
            self._record(text, given, dict(zip(self.meta, values, strict=True)), first + i)
            for i, (text, given, values) in enumerate(zip(texts, ids, metas, strict=True))
        ]

    def _texts(self, array: pa.Array) -> list[Any]:
        """Texts; in place of one that is too long its bytes, of one that is no UTF-8 the error."""
        array = _plain(array)
        sizes = pc.binary_length(array)
        longest = pc.max(sizes).as_py()
        if longest is None or longest <= self.fields.limit:
            return _strings(array, strict=True)
        long = pc.greater(sizes, self.fields.limit)  # never made into Python strings: they may not fit
        texts = _strings(pc.if_else(long, pa.scalar(None, array.type), array), strict=True)
        return [
            size if (size or 0) > self.fields.limit else t for t, size in zip(texts, sizes.to_pylist(), strict=True)
        ]

    def _record(self, text: Any, given: Any, meta: dict[str, Any], row: int) -> Document | Broken:
        where = f"{self.name}, row {row}"
        if text is None:
            return Broken(where, f"{self.fields.text!r} is null", "null_text")
        if isinstance(text, int):
            why = f"{text} bytes of text, more than max_document_bytes={self.fields.limit}"
            return Broken(where, why, "too_long")
        if not isinstance(text, str):
            return Broken(where, f"invalid UTF-8 at byte {text.start}", "invalid_utf8")
        if given is None or given == "":
            if self.fields.id_required:
                return Broken(where, f"no {self.fields.id!r}", "no_id")
            given = f"{self.name}:{row}"
        meta.update(self.absent)
        if self.fields.columns is None:
            meta = without(meta, self.fields.text)
        return Document(str(given), text, meta)


def _pick(batch: pa.RecordBatch, path: str) -> pa.Array:
    if batch.schema.get_field_index(path) >= 0:
        return batch.column(path)
    head, *rest = path.split(".")
    return pc.struct_field(batch.column(head), rest)


def _values(array: pa.Array) -> list[Any]:
    """Plain values: times as ISO text, text that is no UTF-8 with its bytes written out."""
    kind = array.type
    if pa.types.is_temporal(kind):
        return array.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]
    if is_text(kind):
        return _strings(array, strict=False)
    try:
        return array.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:  # somewhere inside a list or struct
        return [_plain_or_none(value) for value in array]


def _plain_or_none(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return None


def _plain(array: pa.Array) -> pa.Array:
    """The same values without dictionary or views."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_string_view(array.type):
        return array.cast(pa.large_string())
    return array.cast(pa.large_binary()) if pa.types.is_binary_view(array.type) else array


def _strings(array: pa.Array, *, strict: bool) -> list[Any]:
    """Texts. One that is no UTF-8 is its `UnicodeDecodeError` if ``strict``, else the bytes are written out."""
    array = _plain(array)
    if not _is_bytes(array.type):
        try:
            return array.to_pylist()  # type: ignore[no-any-return]
        except UnicodeDecodeError:  # parquet promises UTF-8 and nobody checks it: now one value after the other
            array = array.cast(pa.large_binary())
    return [_decoded(raw, strict) for raw in array.to_pylist()]


def _decoded(raw: bytes | None, strict: bool) -> str | UnicodeDecodeError | None:
    if raw is None:
        return None
    try:
        return raw.decode("utf-8", "strict" if strict else "backslashreplace")
    except UnicodeDecodeError as error:
        return error


def _damage(error: Exception) -> str:
    """What is wrong with a file's contents. Raises `RunError` if it is the disk that failed."""
    if getattr(error, "errno", None) is not None:
        raise RunError(f"A file can't be read ({error}).")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:200]
