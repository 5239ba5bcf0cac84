"""Row n is a function, and an epoch of rows is the text."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config.errors import ConfigError, RunError
from slm.data.config import Data
from slm.data.plan import MemoryDocuments, Mixture, Order, Stage, diff
from slm.data.plan.memory import recall
from slm.data.plan.of_corpus import plan_of
from slm.data.plan.plan import Plan
from slm.data.prepare import prepare
from slm.data.sources import Synthetic
from slm.data.tokenizer import Bytes

EOT = 7
LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=25)
POLICIES = st.sampled_from(["best_fit", "concat", "pad", "crop"])
ORDERS = st.sampled_from([Order(), Order(mode="blocked", block=3, group=2)])


def text(lengths: list[int], first: int = 100) -> list[np.ndarray]:
    """Documents of distinct tokens."""
    ends = np.cumsum(lengths)
    return [np.arange(first + end - n, first + end) for n, end in zip(lengths, ends.tolist(), strict=True)]


def chain(document: np.ndarray) -> list[int]:
    return [EOT, *document.tolist(), EOT]


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(8, 30), POLICIES, ORDERS, st.integers(0, 5))
def test_rows_are_the_pieces_they_say(lengths: list[int], seq_len: int, policy: str, order: Order, seed: int) -> None:
    """Every array of every row, against a loop over the row's pieces."""
    documents = text(lengths)
    plan = Plan(
        [("a", MemoryDocuments(documents))], seq_len=seq_len, eot=EOT, policy=policy, window=6, seed=seed, order=order
    )
    count = 2 * plan.rows_per_epoch
    rows = plan.rows(0, count)
    boundaries = []
    for n in range(count):
        tokens, targets, positions, docs = [EOT] * seq_len, [-100] * seq_len, [0] * seq_len, [0] * seq_len
        at, pieces = 0, plan.pieces(n)
        for number, piece in enumerate(pieces):
            whole = chain(documents[piece.document])
            assert piece.starts == (piece.start == 0)
            assert piece.ends == (piece.start + piece.length == len(whole) - 1)
            for i in range(piece.length):
                tokens[at + i], targets[at + i] = whole[piece.start + i], whole[piece.start + i + 1]
                positions[at + i], docs[at + i] = i, number
            boundaries.append(n * seq_len + at)
            at += piece.length
        if at < seq_len:
            boundaries.append(n * seq_len + at)
        for i in range(at, seq_len):
            positions[i], docs[i] = i - at, len(pieces)
        assert rows.tokens[n].tolist() == tokens
        assert rows.targets[n].tolist() == targets
        assert rows.positions[n].tolist() == positions
        assert rows.docs[n].tolist() == docs
        assert all(np.array_equal(a, b) for a, b in zip(_arrays(plan.row(n)), _arrays(rows.row(n)), strict=True))
    assert rows.boundaries.tolist() == [*boundaries, count * seq_len]
    assert np.diff(rows.boundaries).max() <= plan.max_seqlen <= seq_len
    assert len(rows.boundaries) - 1 <= plan.segments.of(count)


def _arrays(row: object) -> list[np.ndarray]:
    return [getattr(row, f.name) for f in dataclasses.fields(row)]  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(8, 30), st.sampled_from(["best_fit", "concat", "pad"]), ORDERS)
def test_every_token_once_per_epoch(lengths: list[int], seq_len: int, policy: str, order: Order) -> None:
    documents = text(lengths)
    plan = Plan([("a", MemoryDocuments(documents))], seq_len=seq_len, eot=EOT, policy=policy, window=6, order=order)
    wanted = Counter(t for d in documents for t in [*d.tolist(), EOT])
    assert plan.tokens_per_epoch == sum(wanted.values())
    for epoch in range(3):
        targets = plan.rows(epoch * plan.rows_per_epoch, plan.rows_per_epoch).targets
        assert Counter(targets[targets >= 0].tolist()) == wanted


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), st.integers(1, 9), POLICIES)
def test_seek_is_the_same_as_going_there(first: int, count: int, policy: str) -> None:
    plan = mixed(policy)
    ahead = plan.rows(0, first + count)
    there = plan.rows(first, count)
    assert np.array_equal(there.tokens, ahead.tokens[first:])
    assert np.array_equal(there.targets, ahead.targets[first:])
    assert plan.rows(first, 0).tokens.shape == (0, 16)
    some = np.arange(first, first + count)[::-2]
    assert np.array_equal(plan.gather(some).docs, ahead.docs[some])


def mixed(policy: str = "best_fit", **changes: object) -> Plan:
    rng = np.random.default_rng(0)
    members = [
        (name, MemoryDocuments(text(rng.integers(0, most, size).tolist(), 1000 * i)))
        for i, (name, most, size) in enumerate([("code", 90, 30), ("math", 9, 50), ("web", 40, 60)], 1)
    ]
    stages = (
        Stage(weights={"web": 0.7, "code": 0.3}, until="1600 tokens"),
        Stage(weights={"web": 0.2, "code": 0.3, "math": 0.5}, ramp=True, until="3200 tokens"),
        Stage(weights={"math": 0.125, "web": 0.875}),
    )
    settings_ = {"seq_len": 16, "eot": EOT, "policy": policy, "window": 8, "seed": 1} | changes
    return Plan(members, mixture=Mixture(stages=stages), **settings_)  # type: ignore[arg-type]


def together(**changes: object) -> Plan:
    members = [(s.name, s.documents) for s in mixed().sources]
    return Plan(members, **{"seq_len": 16, "eot": EOT, "window": 8, "seed": 1} | changes)  # type: ignore[arg-type]


def test_several_sources_without_a_mixture_are_read_together() -> None:
    plan = together()
    assert plan.rows_per_epoch == sum(s.index.rows for s in plan.sources)
    for epoch in range(2):
        source, stored = plan.stream.stored(np.arange(plan.rows_per_epoch) + epoch * plan.rows_per_epoch)
        got = sorted(zip(source.tolist(), stored.tolist(), strict=True))
        assert got == [(i, row) for i, s in enumerate(plan.sources) for row in range(s.index.rows)]
        assert np.abs(np.diff(source)).sum() > 20  # not one after the other
    for rows in (0, 7, plan.rows_per_epoch, 2 * plan.rows_per_epoch + 5):
        source, _ = plan.stream.stored(np.arange(rows))
        assert plan.drawn(rows).tolist() == np.bincount(source, minlength=3).tolist()
    assert plan.hash != mixed().hash


@pytest.mark.parametrize("make", [mixed, together])
def test_where_finds_every_occurrence(make: Callable[..., Plan]) -> None:
    plan, rows = make(), 400
    seen: dict[tuple[str, int], list[tuple[int, int, int, int]]] = {}
    for row in range(rows):
        for number, p in enumerate(plan.pieces(row)):
            seen.setdefault((p.source, p.document), []).append((row, number, p.start, p.length))
    for source, documents in zip(plan.names, (s.documents for s in plan.sources), strict=True):
        for doc in range(len(documents)):
            found = plan.where(doc, rows=rows, source=source, batch_rows=8)
            assert [(o.row, o.piece, o.start, o.length) for o in found] == seen.get((source, doc), [])
            assert all(o.step == o.row // 8 for o in found)
    assert plan.where(0, rows=0, source="web") == []
    with pytest.raises(ConfigError, match="Which source's document 0"):
        plan.where(0, rows=9)
    with pytest.raises(ConfigError, match="no source 'wbe'"):
        plan.where(0, rows=9, source="wbe")
    with pytest.raises(ConfigError, match="documents 0 to 59, not 60"):
        plan.where(60, rows=9, source="web")


def test_the_bound_on_segments_holds_and_is_near() -> None:
    """cu_seqlens has one length for a whole run, and not a needlessly long one."""
    lengths = np.random.default_rng(0).lognormal(3, 1.2, 20_000).astype(int).tolist()
    plan = Plan([("a", MemoryDocuments(text(lengths)))], seq_len=512, eot=EOT)
    for rows in (1, 16, 128):
        counts = [len(plan.rows(i * rows, rows).boundaries) - 1 for i in range(plan.rows_per_epoch // rows)]
        assert max(counts) <= plan.segments.of(rows)
    assert plan.segments.of(128) < 2.5 * max(counts)
    assert plan.segments.of(128) % 64 == 0


def test_damaged_tokens_are_an_error_when_they_are_read() -> None:
    class Damaged(MemoryDocuments):
        def take(self, offset: int, length: int) -> np.ndarray:
            if offset <= 500 < offset + length:
                raise RunError("shards/00000.tok: block 0 differs from its checksum")
            return super().take(offset, length)

    plan = Plan([("a", Damaged(text([30] * 40)))], seq_len=64, eot=EOT)
    bad = [o.row for o in plan.where(500 // 30, rows=plan.rows_per_epoch)]
    for row in range(plan.rows_per_epoch):
        if row in bad:
            with pytest.raises(RunError, match="differs from its checksum"):
                plan.row(row)
        else:
            plan.row(row)


def test_a_flipped_bit_in_the_cache_is_found(tmp_path: Path) -> None:
    plan = mixed(cache_dir=tmp_path)
    plan.verify()
    expected = plan.rows(0, 9).tokens
    flipped = max(tmp_path.glob("*/pieces.bin"), key=lambda path: path.stat().st_size)
    raw = bytearray(flipped.read_bytes())
    raw[len(raw) // 2] ^= 16
    flipped.write_bytes(raw)
    again = mixed(cache_dir=tmp_path)
    with pytest.raises(RunError, match=r"pieces\.bin: bytes 0 to"):
        again.rows(0, 9)
    said: list[str] = []
    assert np.array_equal(mixed(cache_dir=tmp_path, say=said.append).rows(0, 9).tokens, expected)
    assert len(said) == 1
    assert "made again" in said[0]


def test_what_plans_were_made_of_is_remembered(tmp_path: Path) -> None:
    old, new = mixed(cache_dir=tmp_path), mixed(cache_dir=tmp_path, seq_len=32, seed=2)
    described = recall(tmp_path, old.hash)
    assert described == old.described
    assert diff(described, new.described) == [
        *(
            f"mixture: {json.dumps(old.described['mixture'])[:57]}... -> {json.dumps(new.described['mixture'])[:57]}...",
        ),
        "seed: 1 -> 2",
        "seq_len: 16 -> 32",
        *(
            f"sources.{a.name}.rows: {a.index.rows} -> {b.index.rows}"
            for a, b in zip(old.sources, new.sources, strict=True)
        ),
    ]
    (tmp_path / "described" / f"{old.hash}.json").write_text('{"seed": 1}')
    assert recall(tmp_path, old.hash) is None
    assert recall(None, old.hash) is None


def test_every_setting_is_in_the_hash() -> None:
    one = [("a", MemoryDocuments(text([5, 30, 9])))]
    base = {"seq_len": 16, "eot": EOT}
    plans = [
        Plan(one, **base),
        Plan(one, **base | {"seq_len": 17}),
        Plan(one, **base | {"eot": 8}),
        Plan(one, **base, policy="concat"),
        Plan(one, **base, window=3),
        Plan(one, **base, seed=1),
        Plan(one, **base, order=Order(mode="blocked")),
        Plan(one, **base, split="heldout"),
        Plan([("b", one[0][1])], **base),
        Plan([("a", MemoryDocuments(text([5, 30, 8])))], **base),
    ]
    assert len({p.hash for p in plans}) == len(plans)
    assert Plan(one, **base, policy="concat", window=3).hash == plans[3].hash  # no window there


def test_no_documents_and_no_sources_are_refused() -> None:
    with pytest.raises(ConfigError, match="source 'a' has no train documents"):
        Plan([("a", MemoryDocuments([]))], seq_len=16, eot=EOT)
    with pytest.raises(ConfigError, match="different names"):
        Plan([], seq_len=16, eot=EOT)
    with pytest.raises(ConfigError, match="different names"):
        Plan([("a", MemoryDocuments([[1]]))] * 2, seq_len=16, eot=EOT)


def test_the_plan_of_a_store() -> None:
    data = Data(source=Synthetic(count=120, length=30), seq_len=64, heldout=0.1)
    store = prepare(data, Bytes(), "data")
    for split in ("train", "heldout"):
        plan = plan_of(store, data, split)
        targets = plan.rows(0, plan.rows_per_epoch).targets
        wanted = Counter(int(t) for d in store.documents(split) for t in [*d.tokens, plan.eot])
        assert Counter(targets[targets >= 0].tolist()) == wanted
        assert list(Path("data/plans").glob("*/header.json"))
    none = data.with_(heldout=0)
    made = prepare(none, Bytes(), "data")
    with pytest.raises(ConfigError, match=r"no heldout documents. Raise data\.heldout"):
        plan_of(made, none, "heldout")
