from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from token_files import BOS, DOCUMENTS, EOS, VOCAB, ended

from slm.config.errors import ConfigError, RunError
from slm.data.document import Broken
from slm.data.importers import detect
from slm.data.importers.columns import Columns


def lines(path: Path, rows: list[Any]) -> Path:
    raw = "".join(json.dumps(r) + "\n" for r in rows).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def plain(path: Path, part: Columns) -> list[Any]:
    return [(x[0], x[1].tolist()) if isinstance(x, tuple) else x for x in part.read(path, VOCAB)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_lists_of_ids(tmp_path: Path, name: str) -> None:
    rows = [{"tokens": d, "token_count": len(d), "key": f"k{i}"} for i, d in enumerate(DOCUMENTS)]
    path = tmp_path / name
    pq.write_table(pa.Table.from_pylist(rows), path) if name == "a.parquet" else lines(path, rows)
    assert detect(path) == "columns"
    assert plain(path, Columns()) == [(f"{name}:{i}", d) for i, d in enumerate(DOCUMENTS)]
    assert plain(path, Columns(id_field="key")) == [(f"k{i}", d) for i, d in enumerate(DOCUMENTS)]
    assert all(x[1].dtype == np.uint32 for x in Columns().read(path, VOCAB) if isinstance(x, tuple))
    with pytest.raises(ConfigError, match=r"no column 'token'\. Did you mean 'tokens'"):
        plain(path, Columns(tokens_field="token"))


def test_marks_are_taken_off(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"tokens": [BOS, *d]} for d in ended(DOCUMENTS)])
    assert [d for _, d in plain(path, Columns(eos=EOS, bos=BOS))] == DOCUMENTS
    with pytest.raises(ConfigError, match="all 4 documents end with id 99"):
        plain(path, Columns())
    with pytest.raises(ConfigError, match="all 4 documents begin with id 98"):
        plain(path, Columns(eos=EOS))
    assert len(plain(path, Columns(unmarked=True))) == 4
    with pytest.raises(RunError, match=r"line 1: doesn't end with eos=50, but with 99"):
        plain(path, Columns(eos=50, bos=BOS))
    assert len(plain(path, Columns(eos=50, bos=BOS, pieces=True, unmarked=True))) == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": None}, "no list of ids"),
        ({"text": "x"}, "no key 'tokens'"),
        ({"tokens": "1 2"}, "no list of ids"),
        ({"tokens": 7}, "no list of ids"),
        ({"tokens": [1.5]}, "no list of ids"),
        ({"tokens": [True]}, "no list of ids"),
        ({"tokens": [[1], [2]]}, "no list of ids"),
        ({"tokens": [[1], [2, 3]]}, "line 2"),
        ({"tokens": [1, 100]}, "id 100, but the tokenizer has ids from 0 to 99"),
        ({"tokens": [-1]}, "id -1"),
        ({"tokens": [10**30]}, "line 2"),
        ([1, 2], "is list, not a record"),
        ({"tokens": [1], "id": None}, "'id' is null"),
    ],
)
def test_broken_records_are_named_or_handed_on(tmp_path: Path, row: Any, message: str) -> None:
    good = [{"tokens": [1], "id": "a"}, {"tokens": [2, 3], "id": "b"}]
    path = lines(tmp_path / "a.jsonl", [good[0], row, good[1]])
    with pytest.raises(RunError, match=message) as caught:
        plain(path, Columns(id_field="id"))
    assert "a.jsonl, line 2" in str(caught.value)
    first, broken, last = plain(path, Columns(id_field="id", on_error="skip"))
    assert (first, last) == (("a", [1]), ("b", [2, 3]))
    assert isinstance(broken, Broken)
    assert broken.where.endswith("line 2")


def test_empty_lists_are_counted_apart(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"tokens": []}, {"tokens": [EOS]}, {"tokens": [1, EOS]}])
    first, second, third = plain(path, Columns(eos=EOS))
    assert [first.rule, second.rule] == ["empty", "empty"]
    assert third == ("a.jsonl:2", [1])


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("tokens\n1\n")
    with pytest.raises(ConfigError, match="unknown kind of file"):
        plain(tmp_path / "a.csv", Columns())
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RunError, match="no readable parquet"):
        plain(tmp_path / "a.parquet", Columns())
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"tokens": [1]}\n' * 999)[:50])
    with pytest.raises(RunError, match="can't be read to its end"):
        plain(tmp_path / "a.jsonl.gz", Columns(unmarked=True))
