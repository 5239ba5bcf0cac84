from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_files import BOS, EOS, VOCAB, check, flat, packed

from slm.data.importers import base
from slm.data.importers.base import tokens_in
from slm.data.importers.llmc import Llmc
from slm.data.importers.marks import split, strip
from slm.data.importers.olmo import Olmo

PLAIN = st.lists(st.lists(st.integers(0, 5), max_size=5), max_size=8)
PIECES = st.sampled_from([1, 2, 3, 7, 1 << 22])


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "PIECE", base.PIECE)


@given(documents=PLAIN, eos=st.booleans(), bos=st.booleans(), piece=PIECES, width=st.sampled_from([2, 4]))
@settings(max_examples=150, deadline=None)
def test_strip_gives_back_what_was_marked(
    documents: list[list[int]], eos: bool, bos: bool, piece: int, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base.PIECE = piece
    marked = [[BOS] * bos + d + [EOS] * eos for d in documents]
    path = tmp_path_factory.mktemp("t") / "a"
    path.write_bytes(packed(flat(marked), width))
    ends = np.cumsum([0, *map(len, marked)])
    part = Olmo(eos=EOS if eos else None, bos=BOS if bos else None, unmarked=True)
    tokens = tokens_in(path, base.DTYPES["u16" if width == 2 else "u32"])
    file = strip(tokens, (ends[:-1], ends[1:]), part, VOCAB, ids=[str(i) for i in range(len(documents))])
    check(file, [d for d in documents if d])
    assert file.ids == [str(i) for i, d in enumerate(documents) if d]
    assert file.empty == documents.count([])
    assert (file.inner, file.pieces) == (0, 0)
    assert file.specials == {m: len(documents) for m, on in ((BOS, bos), (EOS, eos)) if on and documents}


@given(
    documents=PLAIN.filter(len),
    side=st.sampled_from(["before", "after"]),
    rest=st.lists(st.integers(0, 5), max_size=3),
    both=st.booleans(),
    piece=PIECES,
)
@settings(max_examples=150, deadline=None)
def test_split_gives_back_what_was_marked(
    documents: list[list[int]],
    side: Literal["before", "after"],
    rest: list[int],
    both: bool,
    piece: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """``rest`` is a piece of another document: at the beginning if marks stand before documents, else at the end."""
    base.PIECE = piece
    if both:
        rest = []
    begin, end = [BOS] * (side == "before" or both), [EOS] * (side == "after" or both)
    marked = [begin + d + end for d in documents]
    path = tmp_path_factory.mktemp("t") / "a"
    path.write_bytes(packed(rest * (side == "before") + flat(marked) + rest * (side == "after")))
    tokens = tokens_in(path, base.DTYPES["u16"])
    made = Llmc if side == "before" else Olmo
    part = made(eos=EOS if end else None, bos=BOS if begin else None, unmarked=True, pieces=side == "after")
    file = split(tokens, BOS if side == "before" else EOS, side, part, VOCAB)
    kept = [d for d in documents if d]
    check(file, ([rest] if rest and side == "before" else []) + kept + ([rest] if rest and side == "after" else []))
    assert file.empty == documents.count([])
    assert (file.inner, file.pieces) == (0, int(bool(rest)))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """16 MB of tokens in 16 thousand documents, looked at in pieces of 128 KiB."""
    base.PIECE = 1 << 16
    ids = np.full(1 << 23, 7, "<u2")
    ids[511::512] = EOS
    ids.tofile(tmp_path / "a.npy")
    del ids
    tracemalloc.start()
    file = Olmo(eos=EOS, dtype="u16", unmarked=True).read(tmp_path / "a.npy", VOCAB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(file) == 1 << 14
    assert peak < 4 << 20
