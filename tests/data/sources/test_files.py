"""Files of one's own: every format, what is broken in them, where it says so."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import zstandard

from slm.config.describe import describe_part
from slm.config.errors import ConfigError, RunError
from slm.data.document import Broken, Document
from slm.data.sources import SUFFIXES, Local, SourcePart, source


def records(part: SourcePart) -> list[Document | Broken]:
    return [record for unit in part.units() for record in part.read(unit)]


def test_every_suffix_is_read(tmp_path: Path) -> None:
    row = b'{"text": "a b", "id": "i"}'
    for suffix in SUFFIXES:
        raw = (
            b"a b" if suffix.startswith((".txt", ".md")) else b"[" + row + b"]" if suffix.startswith(".json.") else row
        )
        raw = gzip.compress(raw) if suffix.endswith(".gz") else zstandard.compress(raw) if ".zst" in suffix else raw
        path = tmp_path / f"x{suffix}"
        if suffix == ".parquet":
            continue  # test_parquet.py
        path.write_bytes(raw)
        [doc] = records(Local(paths=(path.name,)))
        assert isinstance(doc, Document)
        assert (doc.text, doc.id) == ("a b", path.name if suffix.startswith((".txt", ".md")) else "i")


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "X.JSONL.GZ").write_bytes(gzip.compress(b'{"text": "a"}'))
    assert [d.text for d in Local(paths=(".",)).documents()] == ["a"]


@pytest.mark.parametrize(
    ("raw", "texts", "broken"),
    [
        ("[]", [], ""),
        (' [ {"text": "a"} , {"text": "b"} ]\n', ["a", "b"], ""),
        ('[{"text": "a"}, 3, {"text": null}, {"text": "b"}]', ["a", "b"], "bad_json null_text"),
        ('[{"text": "a"}, {"text": "b", "text": "c"}, {"text": "d"}]', ["a", "d"], "bad_json"),
        ('[{"text": "a"}, {"text": "b"', ["a"], "truncated_file"),
        ('[{"text": "a"}, ', ["a"], "truncated_file"),
        ('[{"text": "a"},]', ["a"], "truncated_file"),
        ('[{"text": "a"} {"text": "b"}]', ["a"], "truncated_file"),
        ('[{"text": "a"}] more', ["a"], "truncated_file"),
        ("[", [], "truncated_file"),
        ("[12", [], "bad_json truncated_file"),
        ("[12, 13]", [], "bad_json bad_json"),
        ("\ufeff" + '[{"text": "a"}]', ["a"], ""),
        ('{"text": "a"}\n{"text": "b"}', ["a", "b"], ""),  # lines, in spite of its name
        ("", [], ""),
    ],
)
def test_json_arrays(tmp_path: Path, raw: str, texts: list[str], broken: str) -> None:
    (tmp_path / "x.json").write_text(raw)
    found = records(Local(paths=("x.json",)))
    assert [r.text for r in found if isinstance(r, Document)] == texts
    assert " ".join(r.rule for r in found if isinstance(r, Broken)) == broken


def test_a_big_json_array_is_read_in_pieces(tmp_path: Path) -> None:
    rows = [{"text": f"é {i} " + "x" * (i % 7) * 3000, "id": str(i)} for i in range(2000)]
    rows[1000]["text"] = "y" * 3_000_000
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(json.dumps(rows, indent=1, ensure_ascii=False).encode(), 1))
    docs = list(Local(paths=("x.json.gz",)).documents())
    assert [(d.id, d.text) for d in docs] == [(r["id"], r["text"]) for r in rows]
    found = records(Local(paths=("x.json.gz",), max_document_bytes=2_500_000, on_error="skip"))
    assert [i for i, r in enumerate(found) if isinstance(r, Broken)] == [1000]
    assert found[1000].rule == "too_long"  # type: ignore[union-attr]
    small = records(Local(paths=("x.json.gz",), max_document_bytes=300_000, on_error="skip"))
    assert small[-1].rule == "truncated_file"  # type: ignore[union-attr]
    assert len(small) == 1001


def test_a_text_file_can_be_a_document_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbffirst\r\n\n  \nsec\xffond\nthird")
    part = Local(paths=("x.txt",), text_files="lines")
    assert records(part) == [
        Document("x.txt:1", "first"),
        Broken("x.txt, line 4", "invalid UTF-8 at byte 3", "invalid_utf8"),
        Document("x.txt:5", "third"),
    ]
    assert [len(list(part.read(u))) for u in part.units(size=8)] == [1, 1, 1]


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "x.jsonl"])
def test_a_document_that_is_too_long_is_an_error_or_counted(tmp_path: Path, name: str) -> None:
    raw = json.dumps({"text": "a" * 2_000_000}).encode() if name == "x.jsonl" else b"a" * 2_000_000
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    part = Local(paths=(name,), max_document_bytes=1_000_000)
    with pytest.raises(
        RunError, match=rf"{name}.*: 2000\d+ bytes, more than max_document_bytes=1000000.*on_error=skip"
    ):
        list(part.documents())
    assert [r.rule for r in records(part)] == ["too_long"]  # type: ignore[union-attr]
    assert list(part.with_(on_error="skip").documents()) == []
    assert len(records(part.with_(max_document_bytes=2_100_000))[0].text) == 2_000_000  # type: ignore[union-attr]


def test_empty_files_are_fine_but_not_empty_archives(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "c.txt").write_bytes(b"")
    assert records(Local(paths=(".",))) == [Document("c.txt", "")]
    (tmp_path / "d.jsonl.zst").write_bytes(b"")
    with pytest.raises(RunError, match=r"d\.jsonl\.zst.*the file is empty, which no compressed file is"):
        list(Local(paths=(".",)).documents())


def test_a_directory_without_data_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: no .*The directory is empty"):
        Local(paths=("empty",)).units()
    (tmp_path / "empty" / "x.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="1 files of other kinds"):
        Local(paths=("empty",)).units()
    with pytest.raises(ConfigError, match=r"x\.bin: unknown kind of file. slm reads \.parquet"):
        Local(paths=("empty/x.bin",)).units()


def test_directories_can_give_columns(tmp_path: Path) -> None:
    path = tmp_path / "in" / "lang=en" / "year=2020" / "x.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"text": "a", "year": 3}\n{"text": "b"}\n')
    read = lambda columns: [dict(d.meta) for d in Local(paths=("in",), columns=columns).documents()]  # noqa: E731
    assert read(["lang", "year"]) == [{"lang": "en", "year": 3}, {"lang": "en", "year": "2020"}]
    assert read("all") == [{"lang": "en", "year": 3}, {"lang": "en", "year": "2020"}]
    assert read("layout") == [{}, {}]


def test_spellings_of_settings() -> None:
    assert Local.model_validate({"path": "x", "columns": "score"}) == Local(paths=("x",), columns=("score",))
    assert source.parse({"name": "dclm", "path": "x", "global_shards": 3}).global_shards == (3,)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"paths' is required"):
        source.parse({"name": "local", "paths": "???"})
    with pytest.raises(ConfigError, match="paths"):
        source.parse({"name": "local", "paths": []})


def test_parts_and_units_travel_to_other_processes(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' * 9)
    part = Local(paths=("x.jsonl",))
    units = part.units(size=20)
    assert len(units) > 3
    there, packed = pickle.loads(pickle.dumps((part, units)))
    assert [list(there.read(u)) for u in packed] == [list(part.read(u)) for u in units]


@pytest.mark.parametrize("name", sorted(source.parts))
def test_every_field_says_what_it_means(name: str) -> None:
    [part] = [p for p in describe_part(name) if p["slot"] == "source"]
    fields: list[dict[str, Any]] = part["fields"]
    assert not [f["name"] for f in fields if not f["meaning"]]
    assert part["summary"].endswith((".", "fields."))
    assert not [f["name"] for f in fields if f["default"] == "from the width"]
