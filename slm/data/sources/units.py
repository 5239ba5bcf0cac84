"""Cutting files into units of work. A cut depends on the files alone, so every run and every machine cuts alike."""

from __future__ import annotations

import json
from functools import lru_cache

from slm.data.document import Unit
from slm.data.sources.listing import File, is_url
from slm.data.sources.parquet import Footer
from slm.data.sources.streams import cut_at_lines
from slm.data.sources.text import FORMATS, begins_with_bracket, format_of

UNIT_BYTES, UNIT_ROWS = 256 << 20, 1 << 16
"""A unit is about this much: uncompressed bytes, rows of parquet."""
MANY_FILES, GROUP_BYTES = 1024, 64 << 20
"""A source of more files than this has neighbouring small ones joined to units, of so many bytes at most."""


def cut_parquet(file: File, end: Footer, rows: int, size: int) -> list[Unit]:
    """Ranges of row groups; a file with few rows is one unit."""
    pieces = end.cut(rows, size)
    if len(pieces) <= 1:
        return [Unit(file.name, file.uri, file.size)]
    share = file.size / max(1, sum(end.bytes))
    return [
        Unit(f"{file.name}#row={sum(end.rows[:a])}", file.uri, int(sum(end.bytes[a:b]) * share), (a, b))
        for a, b in pieces
    ]


def cut_text(file: File, size: int, *, text_in_lines: bool) -> list[Unit]:
    """Ranges of bytes of a big plain file of lines; one unit of any other file (of one on a network, too: finding the
    lines would read it twice)."""
    whole = [Unit(file.name, file.uri, file.size)]
    if file.size <= size or is_url(file.uri) or not file.name.lower().endswith(tuple(FORMATS)):
        return whole
    kind = format_of(file.name)
    if kind == "text" and not text_in_lines:
        return whole
    if kind == "json" and begins_with_bracket(file.uri, file.size):
        return whole
    pieces = _pieces(file.uri, file.size, file.tag, size)
    return [Unit(f"{file.name}#line={n}", file.uri, end - start, (start, end)) for start, end, n in pieces]


@lru_cache(256)
def _pieces(uri: str, size: int, tag: str | int, target: int) -> list[tuple[int, int, int]]:
    return cut_at_lines(uri, size, target)


def place(unit: Unit) -> tuple[str, int]:
    """A unit's file and, if it is a range of lines, the number of the first."""
    if unit.part is None:
        return unit.name, 1
    name, _, first = unit.name.rpartition("#")
    key, _, number = first.partition("=")
    return name, int(number) if key == "line" else 1


def join_small(pieces: list[Unit]) -> list[Unit]:
    """Join neighbouring small files, if there are very many, to about `MANY_FILES` units."""
    at_most = -(-len(pieces) // MANY_FILES)
    if at_most <= 1:
        return pieces
    groups: list[list[Unit]] = []
    size = 0
    for piece in pieces:
        fits = groups and piece.part is None and groups[-1][0].part is None and len(groups[-1]) < at_most
        if fits and size + piece.bytes <= GROUP_BYTES:
            groups[-1].append(piece)
            size += piece.bytes
        else:
            groups.append([piece])
            size = piece.bytes
    return [group[0] if len(group) == 1 else _joined(group) for group in groups]


def _joined(group: list[Unit]) -> Unit:
    uri = json.dumps([[unit.name, unit.uri, unit.bytes] for unit in group])
    return Unit(f"{group[0].name} and {len(group) - 1} more", uri, sum(unit.bytes for unit in group))


def members(unit: Unit) -> list[Unit]:
    """The files of a unit: itself, or those that were joined."""
    return [Unit(*member) for member in json.loads(unit.uri)] if unit.uri.startswith("[") else [unit]
