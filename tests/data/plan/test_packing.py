"""Packing, by property: nothing lost, nothing twice, nothing cut that needn't be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data.plan import MemoryDocuments
from slm.data.plan.index import Index, index_of
from slm.data.plan.packing import best_fit, pack

LENGTHS = st.lists(st.integers(0, 90), min_size=1, max_size=60)
WHOLE = ("best_fit", "concat", "pad")


def documents(lengths: list[int]) -> MemoryDocuments:
    """Document d has tokens 100 d, 100 d + 1, ..."""
    return MemoryDocuments([range(100 * d, 100 * d + n) for d, n in enumerate(lengths)])


def packed_rows(lengths: list[int], seq_len: int, policy: str, window: int) -> list[list[tuple[int, int, int]]]:
    """(document, start, length) of every piece, row by row, with the flags checked."""
    docs, rows = documents(lengths), []
    for part in pack(docs, seq_len, policy, window):
        at = 0
        for count in part.counts.tolist():
            row = []
            for i in range(at, at + count):
                doc, length = int(part.doc[i]), int(part.length[i])
                start = 0 if part.starts[i] else int(part.place[i] - docs.offsets(doc, doc + 1)[0]) + 1
                assert bool(part.ends[i]) == (start + length == lengths[doc] + 1)
                row.append((doc, start, length))
            rows.append(row)
            at += count
        assert at == len(part.doc)
    return rows


@settings(deadline=None)
@given(LENGTHS, st.integers(8, 40), st.sampled_from(WHOLE), st.integers(1, 70))
def test_every_prediction_is_in_exactly_one_row(lengths: list[int], seq_len: int, policy: str, window: int) -> None:
    rows = packed_rows(lengths, seq_len, policy, window)
    seen = Counter((doc, start + i) for row in rows for doc, start, n in row for i in range(n))
    assert seen == Counter((d, i) for d, n in enumerate(lengths) for i in range(n + 1))
    sizes = [sum(n for _, _, n in row) for row in rows]
    assert min(sizes) > 0
    assert max(sizes) <= seq_len
    if policy == "concat":
        assert all(size == seq_len for size in sizes[:-1])
    if policy == "pad":
        assert all(len(row) == 1 for row in rows)


@settings(deadline=None)
@given(LENGTHS, st.integers(8, 40), st.sampled_from(["best_fit", "pad"]))
def test_documents_that_fit_stay_whole(lengths: list[int], seq_len: int, policy: str) -> None:
    pieces = Counter(doc for row in packed_rows(lengths, seq_len, policy, 1000) for doc, _, _ in row)
    assert pieces == Counter({doc: -(-(n + 1) // seq_len) for doc, n in enumerate(lengths)})


@settings(deadline=None)
@given(LENGTHS, st.integers(8, 40), st.integers(1, 30))
def test_crop_fills_every_row_with_beginnings_of_documents(lengths: list[int], seq_len: int, pool: int) -> None:
    rows = packed_rows(lengths, seq_len, "crop", pool)
    assert sorted(doc for row in rows for doc, _, _ in row) == list(range(len(lengths)))
    for number, row in enumerate(rows):
        assert all(start == 0 for _, start, _ in row)
        assert all(n == lengths[doc] + 1 for doc, _, n in row[:-1])  # only the last of a row is cropped
        if number < len(rows) - 1:
            assert sum(n for _, _, n in row) == seq_len


@settings(deadline=None)
@given(st.lists(st.integers(0, 29), max_size=120), st.just(30))
def test_best_fit_is_best_fit_decreasing(sizes: list[int], room: int) -> None:
    """As many rows, filled alike, as the textbook's loop over items."""
    free: list[int] = []
    for size in sorted((s for s in sizes if s), reverse=True):
        fitting = [i for i, left in enumerate(free) if left >= size]
        if not fitting:
            free.append(room)
            fitting = [len(free) - 1]
        free[min(fitting, key=lambda i: free[i])] -= size
    items, rows, number = best_fit(np.array(sizes, dtype=np.int64), room)
    assert sorted(items.tolist()) == [i for i, s in enumerate(sizes) if s]
    used = np.bincount(rows, weights=np.array(sizes)[items], minlength=number).astype(int)
    assert sorted(room - used) == sorted(free)


@settings(deadline=None)
@given(LENGTHS, st.integers(8, 40), st.sampled_from([*WHOLE, "crop"]), st.integers(1, 20))
def test_the_account_is_exact(lengths: list[int], seq_len: int, policy: str, window: int) -> None:
    index = index_of(documents(lengths), split="train", seq_len=seq_len, policy=policy, window=window)
    rows = packed_rows(lengths, seq_len, policy, window)
    sizes = [sum(n for _, _, n in row) for row in rows]
    assert index.documents == len(lengths)
    assert index.predictions == sum(lengths) + len(lengths)
    assert index.rows == len(rows)
    assert index.kept == sum(sizes)
    assert index.kept + index.padding == len(rows) * seq_len
    assert index.dropped == index.predictions - index.kept
    assert index.dropped == 0 or policy == "crop"
    segments = Counter(len(row) + (size < seq_len) for row, size in zip(rows, sizes, strict=True))
    assert dict(index.segments) == segments
    pieces = [n for row in rows for _, _, n in row]
    assert index.longest == max(*pieces, *(seq_len - size for size in sizes), 0)


@settings(deadline=None)
@given(LENGTHS, st.integers(8, 40), st.sampled_from([*WHOLE, "crop"]), st.integers(1, 20))
def test_documents_are_found_again(lengths: list[int], seq_len: int, policy: str, window: int) -> None:
    index = index_of(documents(lengths), split="train", seq_len=seq_len, policy=policy, window=window)
    rows = packed_rows(lengths, seq_len, policy, window)
    for doc in range(len(lengths)):
        expected = sorted((s, r, i) for r, row in enumerate(rows) for i, (d, s, _) in enumerate(row) if d == doc)
        assert index.find(doc) == [(r, i) for _, r, i in expected]
    assert_rows_are(index, rows)


def assert_rows_are(index: Index, rows: list[list[tuple[int, int, int]]]) -> None:
    table = index.table(np.arange(index.rows)[::-1])
    found: list[list[tuple[int, int]]] = [[] for _ in rows]
    for row, doc, length in zip(table.row.tolist(), table.doc.tolist(), table.length.tolist(), strict=True):
        found[len(rows) - 1 - row].append((doc, length))
    assert found == [[(doc, n) for doc, _, n in row] for row in rows]


@pytest.mark.parametrize(("policy", "fill"), [("best_fit", 0.999), ("concat", 0.9999)])
def test_rows_of_web_text_are_full(policy: str, fill: float) -> None:
    class Lengths(MemoryDocuments):
        """Lengths of web documents (log-normal, mean near 1,000 tokens) without the tokens."""

        def __init__(self) -> None:
            self._lengths = np.maximum(1, np.random.default_rng(0).lognormal(6.4, 1.0, 32768)).astype(np.int64)
            self._offsets = np.cumsum(self._lengths) - self._lengths
            self.content_hash = "lengths"

    index = index_of(Lengths(), split="train", seq_len=2048, policy=policy, window=16384)
    assert index.kept / (index.rows * 2048) > fill
    assert index.dropped == 0
