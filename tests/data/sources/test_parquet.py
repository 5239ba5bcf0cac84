from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slm.config.errors import ConfigError, RunError
from slm.data.document import Broken, Document
from slm.data.sources import Local, SourcePart

ROWS = [f"text {i}" for i in range(100)]


def records(source: SourcePart) -> list[Document | Broken]:
    return [record for unit in source.units() for record in source.read(unit)]


def test_rows_are_documents_with_their_ids_or_their_places(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ROWS, "id": [f"d{i}" if i % 2 else None for i in range(100)]}), "x.parquet")
    docs = records(Local(paths=("x.parquet",)))
    assert [d.text for d in docs if isinstance(d, Document)] == ROWS
    assert [d.id for d in docs[:3] if isinstance(d, Document)] == ["x.parquet:0", "d1", "x.parquet:2"]


def test_files_may_disagree_about_columns_types_and_order(tmp_path: Path) -> None:
    pq.write_table(pa.table({"score": [1.5], "text": ["a"], "date": ["2013"]}), "a.parquet")
    pq.write_table(pa.table({"text": pa.array(["b"], pa.large_string()), "score": [2]}), "b.parquet")
    pq.write_table(pa.table({"text": pa.array(["c"]).dictionary_encode(), "date": [datetime(2020, 1, 2)]}), "c.parquet")
    pq.write_table(pa.table({"text": pa.array([b"d"], pa.binary()), "score": pa.nulls(1)}), "d.parquet")
    for name, kind in (("e", pa.string_view()), ("f", pa.binary_view())):
        pq.write_table(pa.table({"text": pa.array([name.encode()], pa.binary()).cast(kind)}), f"{name}.parquet")
    docs = records(Local(paths=("*.parquet",), columns=("score", "date")))
    assert [(d.text, dict(d.meta)) for d in docs if isinstance(d, Document)] == [
        ("a", {"score": 1.5, "date": "2013"}),
        ("b", {"score": 2, "date": None}),
        ("c", {"score": None, "date": "2020-01-02 00:00:00.000000"}),
        *((name, {"score": None, "date": None}) for name in "def"),
    ]


def test_nested_fields_and_all_columns(tmp_path: Path) -> None:
    table = pa.table({"doc": [{"text": "a", "n": 1}, {"text": "b", "n": None}, None], "x.y": [7, 8, 9]})
    pq.write_table(table, "x.parquet")
    source = Local(paths=("x.parquet",), text_field="doc.text", columns=("doc.n", "x.y", "doc.none"), on_error="skip")
    found = records(source)
    assert [dict(d.meta) for d in found[:2] if isinstance(d, Document)] == [
        {"doc.n": 1, "x.y": 7, "doc.none": None},
        {"doc.n": None, "x.y": 8, "doc.none": None},
    ]
    assert found[2] == Broken("x.parquet, row 2", "'doc.text' is null", "null_text")
    assert dict(records(source.with_(columns="all"))[0].meta) == {"doc": {"n": 1}, "x.y": 7}  # type: ignore[union-attr]


def test_null_text_and_bytes_that_are_no_text_are_single_broken_rows(tmp_path: Path) -> None:
    raw = pa.array([b"a", None, b"ab\xff", b"\xed\xa0\x80", b"e"], pa.binary())
    bad = pa.StringArray.from_buffers(5, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    for column in (raw, bad):
        pq.write_table(pa.table({"text": column, "id": bad}), "x.parquet")
        found = records(Local(paths=("x.parquet",)))
        assert found[1:4] == [
            Broken("x.parquet, row 1", "'text' is null", "null_text"),
            Broken("x.parquet, row 2", "invalid UTF-8 at byte 2", "invalid_utf8"),
            Broken("x.parquet, row 3", "invalid UTF-8 at byte 0", "invalid_utf8"),
        ]
        assert found[0] == Document("a", "a")
        assert found[4] == Document("e", "e")


def test_ids_and_metadata_that_are_no_utf8_are_written_out(tmp_path: Path) -> None:
    raw = pa.array([b"ab\xff"], pa.binary())
    bad = pa.StringArray.from_buffers(1, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(
        pa.table({"text": ["x"], "id": bad, "inside": pa.StructArray.from_arrays([bad], ["k"])}), "x.parquet"
    )
    [doc] = records(Local(paths=("x.parquet",), columns=("id", "inside", "inside.k")))
    assert doc == Document("ab\\xff", "x", {"id": "ab\\xff", "inside": None, "inside.k": "ab\\xff"})


def test_units_are_row_groups_of_about_the_asked_size(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ROWS}), "x.parquet", row_group_size=7)
    source = Local(paths=("x.parquet",))
    units = source.units(rows=20)
    assert [u.part for u in units] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 15)]
    assert [u.name for u in units[:2]] == ["x.parquet#row=0", "x.parquet#row=14"]
    assert [d for u in units for d in source.read(u)] == records(source)
    assert [u.part for u in source.units(rows=3)][:2] == [(0, 1), (1, 2)]  # a row group is never cut
    assert len(source.units(size=1)) == 15
    assert source.units()[0].part is None
    assert sum(u.bytes for u in units) < Path("x.parquet").stat().st_size


def test_a_truncated_file_is_an_error_or_one_skip(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ROWS}), "b.parquet")
    pq.write_table(pa.table({"text": ROWS[:3]}), "c.parquet")
    Path("a.parquet").write_bytes(Path("b.parquet").read_bytes()[:-9])
    Path("d.parquet").write_bytes(b"")
    with pytest.raises(RunError, match=r"a\.parquet: not a whole parquet file"):
        list(Local(paths=(".",)).documents())
    found = records(Local(paths=(".",), on_error="skip"))
    assert [r.rule for r in found if isinstance(r, Broken)] == ["truncated_file"] * 2
    assert len(found) == 105


def test_a_damaged_row_group_costs_its_rows_and_no_others(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": ROWS}), "x.parquet", row_group_size=10, use_dictionary=False, write_page_checksum=True
    )
    column = pq.ParquetFile("x.parquet").metadata.row_group(4).column(0)
    raw = bytearray(Path("x.parquet").read_bytes())
    raw[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    Path("x.parquet").write_bytes(raw)
    found = records(Local(paths=("x.parquet",)))
    lost = [r for r in found if isinstance(r, Broken)]
    assert [b.where for b in lost] == [f"x.parquet, row {i}" for i in range(40, 50)]
    assert {b.rule for b in lost} == {"damaged_rows"}
    assert "row group 4 can't be decoded" in lost[0].why
    assert [d.text for d in found if isinstance(d, Document)] == ROWS[:40] + ROWS[50:]


def test_long_documents_are_counted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a" * 50, "é" * 26, "é" * 25, "b"]}), "x.parquet")
    found = records(Local(paths=("x.parquet",), max_document_bytes=50))
    assert found[1] == Broken("x.parquet, row 1", "52 bytes of text, more than max_document_bytes=50", "too_long")
    assert len([r for r in found if isinstance(r, Document)]) == 3


def test_a_file_without_a_text_column_is_refused_before_any_work(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"], "n": [1], "s": [{"x": "y"}]}), "x.parquet")
    with pytest.raises(ConfigError, match=r"x\.parquet has no column 'txt'.*There are: content, n, s.*text_field"):
        Local(paths=("x.parquet",), text_field="txt", on_error="skip").units()
    with pytest.raises(ConfigError, match="'n' holds int64, not text"):
        Local(paths=("x.parquet",), text_field="n").units()
    with pytest.raises(ConfigError, match=r"no column 'contents'.*Did you mean 'content'\?"):
        Local(paths=("x.parquet",), text_field="s.x", id_field="contents").units()


def test_a_file_that_lost_row_groups_after_it_was_cut(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ROWS}), "x.parquet", row_group_size=10)
    source = Local(paths=("x.parquet",))
    units = source.units(rows=10)
    pq.write_table(pa.table({"text": ROWS[:10]}), "x.parquet", row_group_size=10)
    [broken] = source.read(units[5])
    assert isinstance(broken, Broken)
    assert (broken.rule, broken.why) == ("truncated_file", "has 1 row groups, had 6 before")


def test_no_rows_are_no_records(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), "x.parquet")
    assert records(Local(paths=("x.parquet",))) == []
