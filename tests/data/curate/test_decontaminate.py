from __future__ import annotations

import gzip
import json
import random
import string
import time
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config.errors import ConfigError, RunError
from slm.data.curate import ngrams
from slm.data.curate.decontaminate import Decontaminate, EvalSet, Index
from slm.data.document import Document

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
SHORT = "What is the capital city of northern France today?"


def plain_words(text: str) -> list[str]:
    """The normalisation, one character at a time."""
    kept = (" " if c.isspace() else c for c in text.lower() if unicodedata.category(c)[0] not in "PS")
    return "".join(kept).split()


def index_of(folder: Path, items: list[str], **options: int) -> Index:
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps({"q": item}) + "\n" for item in items))
    return Decontaminate(sets={"items": EvalSet(paths=(str(path),))}, **options).build()


def test_a_shared_run_of_13_words_is_found_whatever_its_dress(tmp_path: Path) -> None:
    index = index_of(tmp_path, [QUESTION])
    words = QUESTION.split()
    for text in (
        QUESTION,
        "Before. " + QUESTION.upper() + " After.",
        " ".join(words[3:16]),
        "\n\t".join(f"“{w}”…" for w in words[:13]),
    ):
        assert index.contaminated(Document("d", text)) == "items", text
    for text in ("", " ".join(words[:12]), " ".join([*words[:12], "other", *words[12:]][:19]), " ".join(words[::-1])):
        assert index.contaminated(Document("d", text)) is None, text


def test_short_items_are_found_whole_and_the_shortest_are_counted(tmp_path: Path) -> None:
    index = index_of(tmp_path, [QUESTION, SHORT, "2 + 2 = ?", "", "one two three four five six seven eight nine ten"])
    coverage = index.coverage["items"]
    assert (coverage.items, coverage.by_ngrams, coverage.whole, coverage.not_covered) == (5, 1, 2, 2)
    assert coverage.runs == len(QUESTION.split()) - 12 + 2
    assert index.lengths == [9, 10, 13]
    assert index.contaminated(Document("d", f"Quiz: {SHORT} Paris.")) == "items"
    assert index.contaminated(Document("d", SHORT.rsplit(" ", 1)[0])) is None
    assert index.contaminated(Document("d", "2 + 2 = ?")) is None


ALPHABET = st.sampled_from(["a", "b", "B", "é", "É", "don’t", "x-y", "!", "¿", "中", "१", "K", "ß", "\ud800"])
GAPS = st.sampled_from([" ", "\n", " \t ", " ", "\x1c", "　", ""])
TEXTS = st.lists(st.tuples(ALPHABET, GAPS).map("".join), max_size=40).map("".join)


@given(items=st.lists(TEXTS, max_size=3), text=TEXTS, n=st.integers(2, 5), chunk=st.sampled_from([3, 7, 1 << 18]))
@settings(max_examples=300, deadline=None)
def test_against_sets_of_tuples(items: list[str], text: str, n: int, chunk: int) -> None:
    """Also where a document is read in small pieces."""

    def runs(text: str, length: int) -> set[tuple[str, ...]]:
        words = plain_words(text)
        return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}

    def hashes(text: str, length: int) -> set[int]:
        return {int(h) for words in ngrams.pieces(text, length - 1) for h in words.ngrams(length)}

    wanted = set().union(*(runs(item, n) for item in items))
    hashed = set().union(*(hashes(item, n) for item in items))
    assert len(hashed) == len(wanted)
    before, ngrams.CHUNK = ngrams.CHUNK, chunk
    try:
        if max(map(len, text.split()), default=0) <= chunk:
            assert bool(hashes(text, n) & hashed) == bool(runs(text, n) & wanted)
            assert len(hashes(text, n)) == len(runs(text, n))
    finally:
        ngrams.CHUNK = before


def test_punctuation_is_python_s_for_ascii() -> None:
    assert {c for c in map(chr, range(128)) if ngrams._kinds()[ord(c)] == ngrams._DROP} == set(string.punctuation)


def test_all_kinds_of_files_and_fields(tmp_path: Path) -> None:
    rows = [{"question": QUESTION, "id": f"{i}", "choices": {"text": [SHORT, "no"]}, "n": 3} for i in range(3)]
    lines = "".join(json.dumps(r) + "\n" for r in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines[:99]) + zstandard.compress(lines[99:]))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.txt").write_text(f"{QUESTION}\n\n{SHORT}\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    made = {
        path.name: Decontaminate(sets={"s": EvalSet(paths=(str(path),))}).build() for path in sorted(tmp_path.iterdir())
    }
    assert len(made) == 6
    for name, index in made.items():
        assert np.array_equal(index.hashes, made["a.jsonl"].hashes), name
    chosen = Decontaminate(sets={"s": EvalSet(paths=(str(tmp_path / "a.jsonl"),), fields=("choices.text",))}).build()
    assert chosen.contaminated(Document("d", SHORT)) == "s"
    assert chosen.contaminated(Document("d", QUESTION)) is None
    folder = Decontaminate(sets={"s": EvalSet(paths=(str(tmp_path),), fields=("question", "text"))}).build()
    assert folder.coverage["s"].items == 17
    assert folder.contaminated(Document("d", QUESTION)) == "s"


def test_several_sets_and_the_first_gets_what_both_have(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(QUESTION)
    (tmp_path / "b.txt").write_text(
        QUESTION + " How many did she sell altogether in April and May, in the end, my friend?"
    )
    sets = {name: EvalSet(paths=(str(tmp_path / f"{name}.txt"),)) for name in "ba"}
    index = Decontaminate(sets=sets).build()
    assert index.contaminated(Document("d", QUESTION)) == "b"
    assert Decontaminate(sets=dict(reversed(sets.items()))).build().contaminated(Document("d", QUESTION)) == "a"


def test_a_saved_index_is_the_same_and_checks_itself(tmp_path: Path) -> None:
    index = index_of(tmp_path, [QUESTION, SHORT, "no"])
    path = tmp_path / "evals.index"
    sha = index.save(path)
    first = path.read_bytes()
    assert index_of(tmp_path, [QUESTION, SHORT, "no"]).save(path) == sha
    assert path.read_bytes() == first
    again = Index.load(path, sha)
    assert again.coverage == index.coverage
    assert again.contaminated(Document("d", SHORT)) == "items"
    assert index_of(tmp_path, [QUESTION]).sha256 != sha
    with pytest.raises(RunError, match="is needed"):
        Index.load(path, "0" * 64)
    rng = random.Random(0)
    for _ in range(40):
        damaged = bytearray(first)
        damaged[rng.randrange(len(first))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="Build it again"):
            Index.load(path)
    path.write_bytes(first[:-9])
    with pytest.raises(RunError, match="no index"):
        Index.load(path)
    with pytest.raises(RunError, match="no index"):
        Index.load(tmp_path / "absent")


def test_bad_sets_are_explained(tmp_path: Path) -> None:
    (tmp_path / "gsm.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    (tmp_path / "broken.jsonl").write_text('{"question": "x"}\n{"quest\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"q": 1}\n' * 999)[:40])
    (tmp_path / "fake.parquet").write_text("no")
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "list.jsonl").write_text('["a"]\n')

    def build(name: str, *fields: str) -> Index:
        return Decontaminate(sets={"s": EvalSet(paths=(str(tmp_path / name),), fields=fields)}).build()

    with pytest.raises(ConfigError, match=r"'s': .*Did you mean 'gsm\.jsonl'"):
        build("gms.jsonl")
    with pytest.raises(ConfigError, match=r"field 'questions'\. Did you mean 'question'"):
        build("gsm.jsonl", "questions")
    with pytest.raises(RunError, match=r"broken\.jsonl, line 2: not valid JSON"):
        build("broken.jsonl")
    with pytest.raises(ConfigError, match="no records"):
        build("empty.jsonl")
    with pytest.raises(RunError, match=r"cut\.jsonl\.gz: can't be read to its end"):
        build("cut.jsonl.gz")
    with pytest.raises(RunError, match=r"fake\.parquet: can't be read"):
        build("fake.parquet")
    with pytest.raises(ConfigError, match=r"a\.csv: unknown kind of file"):
        build("a.csv")
    with pytest.raises(RunError, match=r"line 1: is list, and has no fields"):
        build("list.jsonl", "a")
    with pytest.raises(ConfigError, match="shortest=20 is more than n=13"):
        Decontaminate(sets={"s": EvalSet(paths=("x",))}, shortest=20)


def test_speed(tmp_path: Path) -> None:
    """At least 5 MB/s on one core, for pages of 5 kB beside 4,000 items of several lengths."""
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 9))) for _ in range(5000)]
    index = index_of(tmp_path, [" ".join(rng.choices(words, k=rng.randint(8, 40))) for _ in range(4000)])
    assert index.lengths == list(range(8, 14))
    pages = [Document(str(i), " ".join(rng.choices(words, k=900))) for i in range(200)]
    for i in range(0, 200, 2):  # as web pages are: some with typographic quotes
        pages[i] = Document(str(i), pages[i].text.replace("a", "’"))
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        assert not any(index.contaminated(page) for page in pages)
        best = max(best, sum(len(p.text.encode()) for p in pages) / 1e6 / (time.process_time() - start))
    assert best >= 5


def test_a_huge_document_is_read_in_pieces() -> None:
    text = "word " * 2_000_000 + "x" * 3_000_000
    assert sum(len(words) for words in ngrams.pieces(text, 0)) == pytest.approx(2_000_000, abs=20)
    assert max(len(words.codes) for words in ngrams.pieces(text, 12)) < 2.1 * ngrams.CHUNK + (1 << 20)
