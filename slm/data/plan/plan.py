"""The plan: row *n* of the run as a pure function of (documents, row length, packing, mixture, order, seed, n).

No iterator state, no shuffle buffer: the order is arithmetic, so any world size, micro-batch or resume point
sees the same rows. Row n comes from a source (`schedule`), is the k-th row of it, hence a row of epoch
k // rows in the order of that epoch's permutation (`order`), hence some pieces of documents (`index`), hence
arrays (`rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from slm.config.errors import ConfigError, RunError
from slm.config.identity import fingerprint
from slm.data.plan import memory
from slm.data.plan.cache import Say
from slm.data.plan.description import describe
from slm.data.plan.documents import Documents
from slm.data.plan.index import Index, Table, index_of
from slm.data.plan.mixture import GRID, Mixture, Order, Policy
from slm.data.plan.packing import Progress
from slm.data.plan.rows import Row, Rows, SegmentBound, Take, assemble
from slm.data.plan.schedule import Schedule
from slm.data.plan.stages import Horizon, Resolved, cap_rows, check_exhaustion, resolve_mixture, spans_of
from slm.data.plan.stream import Mixed, Stream, Together
from slm.data.plan.timeline import Flat


@dataclass(frozen=True)
class Source:
    """A source of a plan: its documents, and their packing."""

    name: str
    documents: Documents
    index: Index


@dataclass(frozen=True)
class Piece:
    """Predictions [start, start + length) of a document's chain (end-of-text, tokens, end-of-text), in a row."""

    source: str
    document: int
    start: int
    length: int
    starts: bool
    ends: bool


@dataclass(frozen=True)
class Occurrence:
    """A place of a document in the run: ``step`` if the rows per step were given, else None."""

    row: int
    step: int | None
    epoch: int
    piece: int
    start: int
    length: int


class Plan:
    """The rows of one split of one or several sources, in training order."""

    def __init__(
        self,
        members: Sequence[tuple[str, Documents]],
        *,
        seq_len: int,
        eot: int,
        policy: Policy = "best_fit",
        window: int = 16384,
        seed: int = 0,
        order: Order | None = None,
        mixture: Mixture | None = None,
        horizon: Horizon | None = None,
        split: str = "train",
        cache_dir: Path | str | None = None,
        progress: Progress | None = None,
        say: Say | None = None,
    ) -> None:
        """Pack what isn't packed yet, and resolve the mixture.

        ``members``: (name, documents) of every source, in any order. Without a ``mixture``, several of them are read together:
        an epoch has every row of each once. ``cache_dir``: where packings are kept (None: in memory). ``horizon``: what
        is known of the run, for a mixture's durations and to refuse a run that needs more text than it may read.
        ``progress`` and ``say`` are told what takes long and what was found wrong with a cache.

        Raises:
            ConfigError: a source without documents, an impossible mixture, a source that runs out.
            RunError: the cache can't be written.
        """
        self.split = split
        self.seq_len, self.eot, self.horizon, self.cache_dir = seq_len, eot, horizon or Horizon(), cache_dir
        order = order or Order()
        packing: dict[str, Any] = {"split": split, "seq_len": seq_len, "policy": policy, "window": window}
        self.sources: list[Source] = []
        for name, documents in sorted(members, key=lambda member: member[0]):
            if not len(documents):
                raise ConfigError(f"The source {name!r} has no {split} documents. Raise data.heldout.")
            index = index_of(documents, **packing, cache_dir=cache_dir, progress=progress, say=say)
            self.sources.append(Source(name, documents, index))
        if len(set(self.names)) < len(self.names) or not self.sources:
            raise ConfigError(f"A plan needs sources of different names; it was given {self.names}.")
        self.mixture, self.resolved = mixture, None if mixture is None else self._resolve(mixture)
        self.stream = self._stream(seed, order, say)
        self.described = describe(self, split, policy, window, seed, order)
        memory.remember(cache_dir, self.hash, self.described)

    # ---- what there is ------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Names of the sources, sorted."""
        return [source.name for source in self.sources]

    @cached_property
    def hash(self) -> str:
        """16 hex digits: equal for plans that give equal rows."""
        return fingerprint(self.described)

    @property
    def limit(self) -> int | None:
        """Rows that the run can have; None for any number."""
        return None if self.resolved is None else self.resolved.limit

    @property
    def rows_per_epoch(self) -> int:
        """Rows of all sources, each read once."""
        return sum(source.index.rows for source in self.sources)

    @property
    def tokens_per_epoch(self) -> int:
        """Predictions of all sources, each read once: every token of every document, and one end-of-text each."""
        return sum(source.index.kept for source in self.sources)

    @property
    def max_seqlen(self) -> int:
        """The longest stretch of a row within which attention may look back."""
        return max(source.index.longest for source in self.sources)

    @cached_property
    def segments(self) -> SegmentBound:
        """How many segments a number of rows may have."""
        counts = [source.index.segments for source in self.sources]
        if isinstance(self.stream, Together):
            return SegmentBound.of_sources([(1.0, [pair for several in counts for pair in several])])
        return SegmentBound.of_sources([(self._largest_share(i), several) for i, several in enumerate(counts)])

    # ---- rows ---------------------------------------------------------------------------------------

    def row(self, n: int) -> Row:
        """Row ``n`` of the run (n >= 0; the epochs follow one another)."""
        return self.rows(n, 1).row(0)

    def rows(self, first: int, count: int) -> Rows:
        """Rows [first, first + count) of the run."""
        return self.gather(np.arange(first, first + count))

    def gather(self, numbers: np.ndarray) -> Rows:
        """The rows of the run with the given numbers (int64).

        Raises:
            RunError: damaged tokens or a damaged cache; a row beyond the end of the plan.
        """
        if not len(numbers):
            return Rows.none(self.seq_len)
        source, stored = self._stored(numbers)
        if len(self.sources) == 1:
            table = self.sources[0].index.table(stored)
            takes: list[Take] = [self.sources[0].documents.take] * len(table.row)
        else:
            table, takes = self._mixed(source, stored)
        return assemble(len(numbers), self.seq_len, self.eot, table, takes)

    def _mixed(self, source: np.ndarray, stored: np.ndarray) -> tuple[Table, list[Take]]:
        """The pieces of rows of several sources, and where each one's tokens are taken from."""
        rows, pieces, counts = [], [], []
        present = np.unique(source).tolist()
        for i in present:
            mine = np.flatnonzero(source == i)
            row, records = self.sources[i].index.read(stored[mine])
            rows.append(mine[row])
            pieces.append(records)
            counts.append(len(records))
        row = np.concatenate(rows)
        order = np.argsort(row, kind="stable")
        origin = np.repeat(present, counts)[order]
        takes = [s.documents.take for s in self.sources]
        return Table.of(row[order], np.concatenate(pieces)[order]), [takes[i] for i in origin.tolist()]

    def _stored(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, row in packing order) of rows of the run."""
        if int(numbers.min()) < 0 or (self.limit is not None and int(numbers.max()) >= self.limit):
            raise RunError(f"The plan has no row {int(numbers.max()):,}: {self._why_it_ends()}")
        return self.stream.stored(numbers)

    # ---- looking into it ----------------------------------------------------------------------------

    def pieces(self, row: int) -> list[Piece]:
        """The pieces of a row of the run, in order."""
        source, stored = self._stored(np.array([row]))
        return self._pieces(self.sources[int(source[0])], int(stored[0]))

    def where(
        self, document: int, *, rows: int, source: str | None = None, batch_rows: int | None = None
    ) -> list[Occurrence]:
        """Where a document stands within the first ``rows`` rows of the run, in that order.

        Raises:
            ConfigError: no such source or document, or several sources and none named.
        """
        number = self._number(source, document)
        rows = rows if self.limit is None else min(rows, self.limit)
        origin = self.sources[number]
        found: list[Occurrence] = []
        for stored, index in origin.index.find(document):
            piece = self._pieces(origin, stored)[index]
            epoch = 0
            while (row := self.stream.row_of(number, stored, epoch, rows)) is not None:
                step = None if batch_rows is None else row // batch_rows
                found.append(Occurrence(row, step, epoch, index, piece.start, piece.length))
                epoch += 1
        return sorted(found, key=lambda o: (o.row, o.piece))

    def drawn(self, rows: int) -> np.ndarray:
        """Rows of each source among the first ``rows`` rows of the run, as in ``names``."""
        return self.stream.drawn(rows)

    def verify(self) -> None:
        """Check every block of the packings on disk. Raises `RunError` at the first fault."""
        for source in self.sources:
            source.index.verify()

    def _pieces(self, source: Source, stored: int) -> list[Piece]:
        t = source.index.table(np.array([stored]))
        columns = (t.doc.tolist(), t.place.tolist(), t.length.tolist(), t.starts.tolist(), t.ends.tolist())
        pieces = []
        for doc, place, length, starts, ends in zip(*columns, strict=True):
            start = 0 if starts else place - int(source.documents.offsets(doc, doc + 1)[0]) + 1
            pieces.append(Piece(source.name, doc, start, length, starts, ends))
        return pieces

    def _number(self, source: str | None, document: int) -> int:
        if source is None and len(self.sources) > 1:
            raise ConfigError(f"Which source's document {document}? There are: {', '.join(self.names)}.")
        if source is not None and source not in self.names:
            raise ConfigError(f"There is no source {source!r}. There are: {', '.join(self.names)}.")
        number = 0 if source is None else self.names.index(source)
        if not 0 <= document < len(self.sources[number].documents):
            raise ConfigError(
                f"The source {self.names[number]!r} has documents 0 to {len(self.sources[number].documents) - 1:,}, not {document:,}."
            )
        return number

    # ---- making it ----------------------------------------------------------------------------------

    def _resolve(self, mixture: Mixture) -> Resolved:
        rows = [source.index.rows for source in self.sources]
        spans = spans_of(mixture, self.names, self.seq_len, self.horizon)
        resolved = resolve_mixture(spans, cap_rows(mixture, self.names, rows), mixture.on_exhaust)
        check_exhaustion(resolved, mixture, self.names, rows, self.horizon)
        return resolved

    def _stream(self, seed: int, order: Order, say: Say | None) -> Stream:
        rows = [source.index.rows for source in self.sources]
        if self.resolved is None or len(self.sources) == 1:
            return Together(self.names, rows, seed, order)
        last = min((n for n in (self.horizon.rows, self.resolved.limit) if n is not None), default=None)
        schedule = Schedule.of(self.resolved.timeline, last, self.cache_dir, say)
        return Mixed(schedule, self.names, rows, seed, order)

    def _largest_share(self, source: int) -> float:
        """The largest weight that a source has at any time."""
        assert self.resolved is not None
        weights = ([s.weights] if isinstance(s, Flat) else [s.before, s.after] for s in self.resolved.timeline.segments)
        return max(int(w[source]) for several in weights for w in several) / GRID

    def _why_it_ends(self) -> str:
        if self.resolved is None or self.limit is None:
            return "rows are counted from 0."
        end = f"it ends at row {self.limit:,}, "
        if self.resolved.exhausted:
            names = ", ".join(sorted({repr(self.names[e.source]) for e in self.resolved.exhausted}))
            return f"{end}where {names} has been read max_epochs times. Raise max_epochs or shorten the run."
        return f"{end}with the mixture's last stage. Leave out its 'until', or add a stage."
