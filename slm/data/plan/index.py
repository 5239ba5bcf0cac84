"""The packing of one source as an index: row -> pieces in O(1), on disk, memory-mapped.

Computed once per (documents, row length, policy, window) and kept in a `cache`. 16 bytes per piece and 8
per row: about one percent of the tokens themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.config.errors import ConfigError
from slm.config.identity import fingerprint
from slm.data.plan.cache import Arrays, Say, Writer, cached
from slm.data.plan.documents import Documents
from slm.data.plan.mixture import Policy
from slm.data.plan.packing import Packed, Progress, pack

VERSION = 1
"""Of the packing: raised when the same documents would be packed differently."""

PIECE = np.dtype([("place", "<i8"), ("doc", "<u4"), ("length", "<u4")])
"""Place of the piece's first stored token in the split's token space, its document, its length with two flags."""

STARTS, ENDS = 1 << 31, 1 << 30
LENGTH = ENDS - 1


@dataclass(frozen=True)
class Table:
    """Pieces row by row, as arrays: ``row`` counts the rows asked for, the rest is as in `Packed`."""

    row: np.ndarray
    doc: np.ndarray
    place: np.ndarray
    length: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, row: np.ndarray, pieces: np.ndarray) -> "Table":
        """From records of type `PIECE` and the row of each."""
        flags = pieces["length"]
        length = (flags & LENGTH).astype(np.int64)
        return cls(row, pieces["doc"], pieces["place"], length, (flags & STARTS) != 0, (flags & ENDS) != 0)


class Index:
    """Rows of one source in packing order.

    Attributes: ``documents``, ``rows``, ``pieces``; ``predictions`` of all documents, of which ``kept`` stand in rows and
    ``dropped`` do not; ``padding`` positions; ``longest`` segment (a piece, or the padding of a row); ``segments``: pairs
    (segments in a row, number of such rows).
    """

    def __init__(self, arrays: Arrays) -> None:
        self._arrays, info = arrays, arrays.info
        self._pieces, self._rows = arrays["pieces"], arrays["rows"]
        self.documents, self.rows, self.pieces = int(info["documents"]), int(info["rows"]), int(info["pieces"])
        self.predictions, self.kept, self.padding = int(info["predictions"]), int(info["kept"]), int(info["padding"])
        self.longest = int(info["longest"])
        self.segments: list[tuple[int, int]] = [(int(n), int(rows)) for n, rows in info["segments"]]
        self._window = int(info["window"])

    @property
    def dropped(self) -> int:
        """Predictions that stand in no row (``crop`` only)."""
        return self.predictions - self.kept

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pieces of the given rows, row by row: (which of the rows, records of type `PIECE`)."""
        first, last = self._rows.take(np.stack([rows, rows + 1]))
        counts = last - first
        row = np.repeat(np.arange(len(rows)), counts)
        return row, self._pieces.take(np.arange(len(row)) + (first - (np.cumsum(counts) - counts))[row])

    def table(self, rows: np.ndarray) -> Table:
        """The pieces of the given rows, row by row."""
        return Table.of(*self.read(rows))

    def find(self, doc: int) -> list[tuple[int, int]]:
        """Where a document stands: (row, piece within the row), in the order of its tokens."""
        found: list[tuple[int, bool, int]] = []
        for first, last in self._ranges(doc):
            pieces = self._pieces.read(first, last)
            here = np.flatnonzero(pieces["doc"] == doc)
            later = (pieces["length"][here] & STARTS) == 0  # a first piece of one prediction has the place of the next
            found += zip(pieces["place"][here].tolist(), later.tolist(), (here + first).tolist(), strict=True)
        return [self._row_of(piece) for _, _, piece in sorted(found)]

    def _row_of(self, piece: int) -> tuple[int, int]:
        row = int(np.searchsorted(self._rows.data, piece, side="right")) - 1
        first, last = self._rows.read(row, row + 2).tolist() if 0 <= row < self.rows else (0, 0)
        if not first <= piece < last:  # the search read without checking: now check it all, and say where the fault is
            self._rows.verify()
        return row, piece - first

    def _ranges(self, doc: int) -> Iterator[tuple[int, int]]:
        """Ranges of pieces among which a document's are."""
        if self._window:  # packed window by window
            windows = self._arrays["windows"].read(doc // self._window, doc // self._window + 2)
            yield int(windows[0]), int(windows[1])
        else:
            step = 1 << 20
            yield from ((first, min(first + step, self.pieces)) for first in range(0, self.pieces, step))

    def verify(self) -> None:
        """Check every block on disk. Raises `RunError` at the first fault."""
        self._arrays.verify()


def index_of(
    documents: Documents,
    *,
    split: str,
    seq_len: int,
    policy: Policy,
    window: int,
    cache_dir: Path | str | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Index:
    """The index of a source: from the cache, or computed now and written there.

    Raises:
        ConfigError: more documents than the index can number, or rows longer than it can describe.
        RunError: the cache can't be written.
    """
    if len(documents) >= 1 << 32 or seq_len > LENGTH:
        raise ConfigError(
            f"A split of {len(documents):,} documents in rows of {seq_len:,} is beyond the plan's index, which holds "
            f"{(1 << 32) - 1:,} documents and rows of {LENGTH:,}. Split the source into several and mix them."
        )
    made_from: dict[str, Any] = {
        "version": VERSION,
        "content": documents.content_hash,
        "split": split,
        "seq_len": seq_len,
        "packing": policy,
        "window": window if policy in ("best_fit", "crop") else None,
        "chain": "eot, document, eot",
    }

    def make(writer: Writer) -> dict[str, Any]:
        return _write(writer, documents, pack(documents, seq_len, policy, window, progress), seq_len, policy, window)

    return Index(cached(cache_dir, fingerprint(made_from), made_from, make, say))


def _write(
    writer: Writer, documents: Documents, packing: Iterator[Packed], seq_len: int, policy: Policy, window: int
) -> dict[str, Any]:
    pieces, rows, kept, longest = 0, 0, 0, 0
    segments: dict[int, int] = {}
    writer.append("rows", np.zeros(1, dtype="<i8"))
    writer.append("windows", np.zeros(1, dtype="<i8"))
    for packed in packing:
        record = np.empty(len(packed.doc), dtype=PIECE)
        record["place"], record["doc"] = packed.place, packed.doc
        record["length"] = packed.length + packed.starts * STARTS + packed.ends * ENDS
        writer.append("pieces", record)
        row_ends = np.cumsum(packed.counts)
        writer.append("rows", pieces + row_ends)
        pieces, rows = pieces + len(record), rows + len(row_ends)
        writer.append("windows", np.array([pieces]))
        used = np.add.reduceat(packed.length, row_ends - packed.counts)
        kept += int(used.sum())
        longest = max(longest, int(packed.length.max()), seq_len - int(used.min()))
        per_row = np.bincount(packed.counts + (used < seq_len))  # padding is a segment of its own
        for n in np.flatnonzero(per_row).tolist():
            segments[n] = segments.get(n, 0) + int(per_row[n])
    total = len(documents)
    predictions = total + sum(
        int(documents.lengths(i, min(total, i + (1 << 20))).sum()) for i in range(0, total, 1 << 20)
    )
    return {
        "documents": total,
        "predictions": predictions,
        "rows": rows,
        "pieces": pieces,
        "kept": kept,
        "padding": rows * seq_len - kept,
        "longest": longest,
        "segments": sorted(segments.items()),
        "window": window if policy == "best_fit" else 0,
    }
