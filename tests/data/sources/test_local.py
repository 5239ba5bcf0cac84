from __future__ import annotations

import gzip
import itertools
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from slm.config.errors import ConfigError, RunError
from slm.data.sources import Local, Stdlib, Synthetic

LINES = "".join(json.dumps({"text": f"document {i}", "id": f"d{i}"}) + "\n" for i in range(5))


def test_every_local_format_gives_the_same_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    one, two = LINES.encode()[:60], LINES.encode()[60:]
    frames = zstandard.compress(one) + zstandard.compress(two)  # several frames, as in the hub's shards
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    found = [
        list(Local(paths=(str(tmp_path / name),)).documents()) for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst")
    ]
    assert found[0] == found[1] == found[2]
    assert [d.id for d in found[0]] == [f"d{i}" for i in range(5)]


def test_directories_and_patterns_and_texts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    assert [d.text for d in Local(paths=(str(tmp_path),)).documents()] == ["a", "b"]
    assert [d.text for d in Local(paths=("*.txt",)).documents()] == ["a"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"text": "x"\n', "line 1: not valid JSON"),
        ('{"txt": "x"}\n', "line 1: no key 'text'"),
        ('{"text": 3}\n', "line 1: 'text' is int"),
    ],
)
def test_broken_lines_are_named_or_skipped(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "a.jsonl").write_text(content + LINES)
    with pytest.raises(RunError, match=expected):
        list(Local(paths=("a.jsonl",)).documents())
    assert len(list(Local(paths=("a.jsonl",), on_error="skip").documents())) == 5


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_truncated_archives_are_errors(tmp_path: Path, name: str) -> None:
    lines = (LINES * 2000).encode()
    raw = gzip.compress(lines) if name.endswith("gz") else zstandard.compress(lines)
    (tmp_path / name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(RunError, match=name):
        list(Local(paths=(name,)).documents())


def test_missing_paths_and_bad_utf8(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes(b"ok \xff")
    with pytest.raises(ConfigError, match=r"Did you mean 'texts\.txt'"):
        list(Local(paths=("text.txt",)).documents())
    with pytest.raises(RunError, match="invalid UTF-8 at byte 3"):
        list(Local(paths=("texts.txt",)).documents())


def test_stdlib_is_big_enough_and_leaves_out_what_varies() -> None:
    ids = [d.id for d in Stdlib().documents()]
    assert ids == sorted(ids)
    assert len(ids) > 300
    assert not [i for i in ids if {"test", "idlelib", "encodings", "lib2to3", "site-packages"} & set(Path(i).parts)]


def test_synthetic_has_the_entropy_that_it_promises() -> None:
    part = Synthetic(count=400, branching=4, words=16)
    assert list(part.documents()) == list(part.documents())
    pairs, singles = Counter(), Counter()
    for doc in part.documents():
        words = doc.text.split()
        singles.update(words[:-1])
        pairs.update(itertools.pairwise(words))
    total = sum(pairs.values())
    bits = -sum(n / total * math.log2(n / singles[a]) for (a, _), n in pairs.items())
    assert bits == pytest.approx(part.bits_per_word, abs=0.01)
