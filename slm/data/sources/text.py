"""Files of JSON lines, JSON arrays and plain text, read in bounded memory."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterator
from typing import Literal

from slm.data.document import Broken, Document, Unit
from slm.data.sources.records import Fields
from slm.data.sources.streams import CHUNK, COMPRESSIONS, DamagedError, TooLong, chunks, split_lines, whole

Format = Literal["parquet", "lines", "json", "text"]
FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".txt": "text",
    ".md": "text",
}
COMPRESSION: dict[str, str | None] = {"": None, **COMPRESSIONS}


def format_of(name: str) -> Format:
    """What a file holds, by its name without the suffix of its compression."""
    name = name.lower()
    name = name.removesuffix(next((c for c in COMPRESSIONS if name.endswith(c)), ""))
    return next(kind for suffix, kind in FORMATS.items() if name.endswith(suffix))


def read_text(unit: Unit, first: int, fields: Fields, *, lines: bool) -> Iterator[Document | Broken]:
    """The records of a file, or of a range of its bytes.

    Args:
        first: number of the first line of that range.
        lines: whether a file of plain text is a document a line.
    """
    compression = next((c for suffix, c in COMPRESSIONS.items() if unit.uri.lower().endswith(suffix)), None)
    pieces = chunks(unit.uri, unit.bytes, compression=compression, part=unit.part)
    kind = format_of(unit.name)
    if kind == "text" and not lines:
        yield _whole_text(unit.name, pieces, fields.limit)
        return
    if kind == "json" and first == 1:
        start = _peek(pieces)
        if isinstance(start, DamagedError):
            yield Broken(unit.name, f"can't be read to its end ({start})", "truncated_file")
            return
        pieces = itertools.chain(start, pieces)
        if b"".join(start).lstrip().startswith(b"["):
            yield from _array(unit.name, pieces, fields)
            return
    yield from _lines(unit.name, pieces, first, fields, plain=kind == "text")


def _whole_text(name: str, pieces: Iterator[bytes], limit: int) -> Document | Broken:
    try:
        raw = whole(pieces, limit)
    except DamagedError as error:
        return Broken(name, f"can't be read to its end ({error})", "truncated_file")
    if isinstance(raw, TooLong):
        return Broken(name, f"{raw.size} bytes, more than max_document_bytes={limit}", "too_long")
    try:
        return Document(name, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Broken(name, f"invalid UTF-8 at byte {error.start}", "invalid_utf8")


def _lines(
    name: str, pieces: Iterator[bytes], first: int, fields: Fields, *, plain: bool
) -> Iterator[Document | Broken]:
    """A document per line that isn't blank."""
    number = first - 1
    try:
        for number, raw in enumerate(split_lines(pieces, fields.limit), start=first):
            if isinstance(raw, TooLong):
                why = f"{raw.size} bytes, more than max_document_bytes={fields.limit}"
                yield Broken(f"{name}, line {number}", why, "too_long")
            elif not raw or raw.isspace():
                continue
            else:
                yield _plain_line(raw, name, number) if plain else fields.from_json(raw, name, number)
    except DamagedError as error:
        yield Broken(f"{name}, after line {number}", f"can't be read to its end ({error})", "truncated_file")


def _plain_line(raw: bytes, name: str, number: int) -> Document | Broken:
    try:
        return Document(f"{name}:{number}", raw.rstrip(b"\r").decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        return Broken(f"{name}, line {number}", f"invalid UTF-8 at byte {error.start}", "invalid_utf8")


def _peek(pieces: Iterator[bytes]) -> list[bytes] | DamagedError:
    """The first pieces of a stream, up to one that isn't all white space."""
    held: list[bytes] = []
    try:
        for piece in pieces:
            held.append(piece.removeprefix(codecs.BOM_UTF8) if not held else piece)
            if not held[-1].isspace():
                break
    except DamagedError as error:
        return error
    return held


def begins_with_bracket(uri: str, size: int) -> bool:
    """Whether a plain file is a JSON array."""
    start = _peek(chunks(uri, size))
    return not isinstance(start, DamagedError) and b"".join(start).lstrip().startswith(b"[")


def _array(name: str, pieces: Iterator[bytes], fields: Fields) -> Iterator[Document | Broken]:
    """A document per item of a JSON array, parsed as it comes. Where its syntax breaks there is no next item."""
    number, why = 0, ""
    stream = _Characters(pieces, fields.limit)
    try:
        stream.take("[")
        while stream.next() != "]":
            if number:
                stream.take(",")
            raw = stream.value()
            number += 1
            if len(raw) > fields.limit:
                long = f"{len(raw)} bytes, more than max_document_bytes={fields.limit}"
                yield Broken(f"{name}, item {number}", long, "too_long")
            else:
                yield fields.from_json(raw, name, number, "item")
        stream.take("]")
        if stream.next():
            why = "something stands after the closing bracket"
    except DamagedError as error:
        why = str(error)
    except (ValueError, RecursionError) as error:
        why = "invalid UTF-8" if isinstance(error, UnicodeDecodeError) else f"not valid JSON: {error}"
    if why:
        yield Broken(f"{name}, after item {number}", f"can't be read to its end ({why})", "truncated_file")


class _Characters:
    """A JSON text that is read piece by piece, as far as the next value needs it."""

    def __init__(self, pieces: Iterator[bytes], limit: int) -> None:
        self._pieces, self._limit = pieces, limit
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._values = json.JSONDecoder()
        self._text, self._at = "", 0

    def _more(self, wanted: int = 1) -> bool:
        """Have at least so many more characters, if there are; False at the end."""
        held = [self._text[self._at :]]
        while wanted > 0 and (piece := next(self._pieces, None)) is not None:
            held.append(self._decode(piece))
            wanted -= len(held[-1])
        self._text, self._at = "".join(held), 0
        if len(held) == 1:
            self._decode(b"", True)
        return len(held) > 1

    def next(self) -> str:
        """The next character that isn't white space, left where it is; nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        """Pass over a character that has to stand next."""
        if self.next() != character:
            raise ValueError(f"expected {character!r}, found {self.next() or 'the end'!r}")
        self._at += 1

    def value(self) -> bytes:
        """Pass over the next value; returns its text."""
        self.next()
        while True:
            try:
                end = self._values.raw_decode(self._text, self._at)[1]
            except ValueError:
                end = 0
            if end and (end < len(self._text) or not self._more()):
                raw, self._at = self._text[self._at : end], end
                return raw.encode("utf-8", "surrogatepass")
            held = len(self._text) - self._at
            if held > self._limit + CHUNK:
                raise ValueError(f"an item doesn't end within max_document_bytes={self._limit}")
            if not end and not self._more(max(1, held)):
                self._values.raw_decode(self._text, self._at)  # says what is wrong
                raise ValueError("no value")
