"""Whatever happened to the files: every record comes out once, as a document or as broken, however the files are cut."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config.errors import ConfigError, RunError
from slm.data.document import Broken, Document
from slm.data.sources import Local, SourcePart

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".json", ".ndjson.zstd")
TEXTS = st.text('abc \n"\\é\U0001f600', max_size=40)


@dataclass(frozen=True)
class Record:
    text: str | None
    id: str | None


RECORDS = st.lists(st.builds(Record, st.none() | TEXTS, st.none() | st.text("xyz", max_size=3)), max_size=40)


def lines(records: list[Record], blank: bool) -> bytes:
    gap = "\n" if blank else ""
    rows = [json.dumps({"text": r.text, "id": r.id}, ensure_ascii=i % 2 == 0) for i, r in enumerate(records)]
    return "".join(row + "\n" + gap for row in rows).encode()


def written(suffix: str, records: list[Record], group: int, blank: bool) -> bytes:
    if suffix == ".parquet":
        table = pa.table(
            {
                "text": pa.array([r.text for r in records], pa.string()),
                "id": pa.array([r.id for r in records], pa.string()),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=group, write_page_checksum=True, data_page_size=64)
        return buffer.getvalue()
    if suffix == ".json":
        return json.dumps([{"text": r.text, "id": r.id} for r in records], indent=2 if blank else None).encode()
    raw = lines(records, blank)
    if suffix == ".jsonl.gz":
        return gzip.compress(raw[: len(raw) // 2]) + gzip.compress(raw[len(raw) // 2 :])
    if suffix.startswith((".jsonl.z", ".ndjson.z")):
        write = zstandard.ZstdCompressor(write_checksum=True).compress
        return write(raw[: len(raw) // 2]) + write(raw[len(raw) // 2 :])
    return raw


def records_of(source: SourcePart, **cut: int) -> list[Document | Broken]:
    return [record for unit in source.units(**cut) for record in source.read(unit)]  # type: ignore[call-arg]


@settings(deadline=None)
@given(st.sampled_from(SUFFIXES), RECORDS, st.integers(1, 9), st.booleans(), st.integers(1, 30), st.integers(1, 400))
def test_all_records_come_out_in_order_however_files_are_cut(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    records: list[Record],
    group: int,
    blank: bool,
    rows: int,
    size: int,
) -> None:
    root = tmp_path_factory.mktemp("x")
    half = len(records) // 2
    (root / f"a{suffix}").write_bytes(written(suffix, records[:half], group, blank))
    (root / f"b{suffix}").write_bytes(written(suffix, records[half:], group, blank))
    source = Local(paths=(f"{root}/*",))
    found = records_of(source)
    assert [r.text if isinstance(r, Document) else None for r in found] == [r.text for r in records]
    assert {b.rule for b in found if isinstance(b, Broken)} <= {"null_text"}
    given_ids = [r.id for r in records if r.text is not None]
    docs = [r for r in found if isinstance(r, Document)]
    assert all(doc.id == given for doc, given in zip(docs, given_ids, strict=True) if given)
    places = [doc.id for doc, given in zip(docs, given_ids, strict=True) if not given]
    assert len(set(places)) == len(places)
    assert records_of(source, rows=rows, size=size) == found


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(SUFFIXES),
    RECORDS,
    st.integers(1, 9),
    st.lists(
        st.tuples(st.sampled_from(["flip", "cut", "drop", "insert"]), st.floats(0, 0.999), st.integers(0, 255)),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 30),
    st.integers(1, 400),
)
def test_damage_is_counted_and_stays_where_it_is(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    records: list[Record],
    group: int,
    damages: list[tuple[str, float, int]],
    rows: int,
    size: int,
) -> None:
    raw = bytearray(written(suffix, records, group, False))
    for kind, where, value in damages:
        at = int(len(raw) * where)
        if kind == "flip" and raw:
            raw[at] ^= value or 1
        elif kind == "cut":
            del raw[at:]
        elif kind == "drop":
            del raw[at : at + value]
        else:
            raw[at:at] = bytes([value])
    root = tmp_path_factory.mktemp("x")
    (root / f"a{suffix}").write_bytes(raw)
    (root / f"b{suffix}").write_bytes(written(suffix, records, group, False))
    source = Local(paths=(f"{root}/*",), on_error="skip")
    try:
        found = records_of(source)
    except ConfigError:  # the damage is in the name or the type of the column
        if suffix == ".parquet":
            return
        raise
    assert records_of(source, rows=rows, size=size) == found
    mine, after = found[: len(found) - len(records)], found[len(found) - len(records) :]
    assert [r.text if isinstance(r, Document) else None for r in after] == [r.text for r in records]  # b is whole
    for record in found:
        if isinstance(record, Document):
            record.text.encode()
            record.id.encode()
    if suffix in (".jsonl",):
        assert len(mine) == sum(not line.isspace() for line in io.BytesIO(raw) if line.strip(b"\n"))
    elif any(isinstance(r, Broken) and r.rule == "truncated_file" for r in mine):
        assert isinstance(mine[-1], Broken)
        assert mine[-1].rule == "truncated_file"
    elif suffix == ".parquet":
        assert len(mine) == len(records)
    if any(isinstance(r, Broken) for r in mine):
        with pytest.raises(RunError):
            list(source.with_(on_error="fail").documents())


def test_many_small_files_are_read_in_few_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm.data.sources.units.MANY_FILES", 10)
    monkeypatch.setattr("slm.data.sources.units.GROUP_BYTES", 300)
    for i in range(95):
        (tmp_path / f"{i:02d}.jsonl").write_bytes(b'{"text": "x"}\n' * (40 if i == 50 else 1))
    source = Local(paths=(str(tmp_path),))
    units = source.units(size=200)
    assert len(units) == 5 + 3 + 5  # the big file stands alone, in three pieces
    assert units[0].name == "00.jsonl and 9 more"
    assert sum(unit.bytes for unit in units) == 14 * (94 + 40)
    found = [r for unit in units for r in source.read(unit)]
    monkeypatch.undo()
    assert found == records_of(source)
    assert len(found) == 94 + 40
