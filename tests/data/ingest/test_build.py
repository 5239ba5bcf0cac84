"""Making a store: every record accounted for, the same bytes however it is made, nothing half-made taken for whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard

from slm.config.errors import ConfigError, RunError
from slm.data.curate.decontaminate import Decontaminate, EvalSet
from slm.data.ingest.build import build
from slm.data.ingest.config import Curation, is_heldout
from slm.data.ingest.merge import SHARD_BYTES, shard_ranges
from slm.data.sources import Local
from slm.data.store import Store
from slm.data.tokenizer import BytePairs, Bytes

QUESTION = "what is the name of the river that flows through the old town of the northern kingdom"


def corpus(folder: Path, files: int = 5, documents: int = 40, *, broken: bool = False) -> Local:
    """Jsonl files, plain and compressed, of documents with a score; known numbers of every kind of unwanted one."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(300)]
    for number in range(files):
        lines = []
        for i in range(documents):
            text = " ".join(rng.choices(words, k=rng.randint(1, 120)))
            lines.append(json.dumps({"id": f"{number}-{i}", "text": text, "score": rng.randint(0, 5)}))
        if broken:
            lines.insert(7, '{"text": "half a li')
            lines.insert(9, json.dumps({"id": f"{number}-null", "text": None, "score": 5}))
            lines.append(json.dumps({"id": f"{number}-empty", "text": "", "score": 5}))
            lines.append(json.dumps({"id": f"{number}-again", "text": "the same in every file", "score": 5}))
            lines.append(json.dumps({"id": f"{number}-leak", "text": f"Quiz: {QUESTION}? (file {number})", "score": 5}))
        raw = "".join(line + "\n" for line in lines).encode()
        if number % 2:
            (folder / f"{number}.jsonl.zst").write_bytes(zstandard.compress(raw))
        else:
            (folder / f"{number}.jsonl").write_bytes(raw)
    return Local(paths=(str(folder),), columns=("score",), on_error="skip" if broken else "fail")


def contents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


CURATION = Curation(heldout=0.1)


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", broken=True)
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    sets = Decontaminate(sets={"quiz": EvalSet(paths=(str(tmp_path / "quiz.jsonl"),))})
    curation = Curation(heldout=0.1, filters=("score >= 2",), decontaminate=sets)
    store = build(tmp_path / "store", (source,), Bytes(), curation)
    account = store.manifest["accounting"]
    dropped = account["dropped"]
    assert account["read"] == 5 * 45
    assert dropped["bad_json"] == dropped["null_text"] == dropped["empty"] == dropped["contaminated: quiz"] == 5
    assert dropped["duplicate"] == 4
    below = sum(
        json.loads(line)["score"] < 2
        for f in (tmp_path / "in").iterdir()
        for line in (zstandard.ZstdDecompressor().stream_reader(f.read_bytes()).read() if f.suffix == ".zst" else f.read_bytes()).splitlines()
        if line.endswith(b"}")
    )  # fmt: skip
    assert dropped["score >= 2"] == below
    assert account["kept"] == account["read"] - sum(dropped.values())
    assert account["kept"] == sum(len(split) for split in store.splits.values())
    scores = [
        s for split in store.splits.values() for table in split.meta(("score",)) for s in table["score"].to_pylist()
    ]
    assert min(scores) >= 2
    assert len(scores) == account["kept"]


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", files=7)
    made = [
        contents(build(tmp_path / f"store{n}", (source,), BytePairs(vocab=400), CURATION, workers=n).path)
        for n in (1, 2, 3)
    ]
    assert made[0] == made[1] == made[2]


def test_shuffled_order_is_a_permutation_and_the_unshuffled_is_the_sources(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", files=10, documents=60)
    wanted = [d.id for d in source.documents()]
    orders = {}
    for name, curation in {
        "none": Curation(heldout=0, shuffle=False), "zero": Curation(heldout=0), "one": Curation(heldout=0, shuffle_seed=1)
    }.items():  # fmt: skip
        store = build(tmp_path / name, (source,), Bytes(), curation)
        orders[name] = [d.id for d in store.documents("train")]
        assert sorted(orders[name]) == sorted(wanted)
    assert orders["none"] == wanted
    rank = {doc: i for i, doc in enumerate(wanted)}
    places = np.array([[rank[d] for d in orders[n]] for n in ("zero", "one")])
    correlations = np.corrcoef(np.vstack([places, np.arange(len(wanted))]))
    assert abs(correlations[np.triu_indices(3, 1)]).max() < 4 / len(wanted) ** 0.5


def test_the_order_does_not_depend_on_the_size_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = corpus(tmp_path / "in")
    whole = build(tmp_path / "one", (source,), Bytes(), CURATION)
    monkeypatch.setattr("slm.data.ingest.merge.SHARD_BYTES", 5000)
    cut = build(tmp_path / "many", (source,), Bytes(), CURATION)
    assert len(cut.split("train").shards) > 5
    for split in ("train", "heldout"):
        assert [(d.id, d.tokens.tolist(), d.bytes) for d in whole.documents(split)] == [
            (d.id, d.tokens.tolist(), d.bytes) for d in cut.documents(split)
        ]
    in_order = build(tmp_path / "order", (source,), Bytes(), Curation(heldout=0, shuffle=False))
    assert len(in_order.split("train").shards) == 5  # a unit is never cut
    assert [d.id for d in in_order.documents("train")] == [d.id for d in source.documents()]


def test_shards_of_a_large_store_have_the_size_that_is_meant() -> None:
    tokens = {"train": [10**9] * 50, "heldout": [10**6]}
    ranges = shard_ranges(tokens, 2, shuffled=True)
    train = [r for r in ranges if r.split == "train"]
    assert abs(len(train) - 50e9 * 2 / SHARD_BYTES) < 1
    assert train[0].first == 0
    assert train[-1].last == 2**64 - 1
    assert all(a.last + 1 == b.first for a, b in pairwise(train))
    assert [r.number for r in ranges] == list(range(len(ranges)))


def test_repeats_are_dropped_across_files_and_the_first_stays(tmp_path: Path) -> None:
    for name, text in (("a", "One  Text"), ("b", "one text"), ("c", "One  Text")):
        lines = [{"id": name, "text": text}, {"id": f"{name}2", "text": f"only {name} " * 9}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for dedup, kept in (("exact", ["a", "b"]), ("normalized", ["a"]), ("off", ["a", "b", "c"])):
        store = build(tmp_path / dedup, (Local(paths=(str(tmp_path),)),), Bytes(), Curation(heldout=0, dedup=dedup))
        ids = sorted(d.id for d in store.documents("train"))
        assert [i for i in ids if len(i) == 1] == kept
        assert store.manifest["accounting"]["dropped"].get("duplicate", 0) == 3 - len(kept)


def test_other_settings_never_go_on_with_what_is_there(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in")
    build(tmp_path / "store", (source,), Bytes(), CURATION)
    build(tmp_path / "store", (source,), Bytes(), CURATION)  # the same again is fine
    with pytest.raises(RunError, match=r"is a store already.*curation.heldout: 0.1 -> 0.2"):
        build(tmp_path / "store", (source,), Bytes(), Curation(heldout=0.2))
    (tmp_path / "half.partial").mkdir()
    job = tmp_path / "half.partial" / "job.json"
    job.write_text(json.dumps({**Store.open(tmp_path / "store").manifest["made_of"], "tokenizer": {"name": "other"}}))
    with pytest.raises(RunError, match=r"half.partial was begun with other settings \(tokenizer.name"):
        build(tmp_path / "half", (source,), Bytes(), CURATION)


def test_a_broken_record_is_an_error_that_names_it_and_what_is_finished_stays(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", files=3)
    file = tmp_path / "in" / "2.jsonl"
    whole = file.read_bytes()
    stamp = file.stat().st_mtime_ns
    damaged = whole[:50] + b"\xff" + whole[51:]
    file.write_bytes(damaged)
    os.utime(file, ns=(stamp, stamp))
    with pytest.raises(RunError, match=r"2\.jsonl"):
        build(tmp_path / "store", (source,), Bytes(), CURATION)
    assert not (tmp_path / "store").exists()
    assert len(list((tmp_path / "store.partial" / "units").iterdir())) == 2
    file.write_bytes(whole)
    os.utime(file, ns=(stamp, stamp))
    assert build(tmp_path / "store", (source,), Bytes(), CURATION).manifest["accounting"]["kept"] == 120


def test_no_documents_and_none_held_out_are_explained(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ConfigError, match="no training documents"):
        build(tmp_path / "s", (Local(paths=(str(tmp_path / "a.jsonl"),)),), Bytes(), CURATION)
    (tmp_path / "b.jsonl").write_text(
        json.dumps({"text": "x", "id": next(f"d{i}" for i in range(99) if not is_heldout(f"d{i}", 0.1))})
    )
    with pytest.raises(ConfigError, match="leaves none for evaluation"):
        build(tmp_path / "t", (Local(paths=(str(tmp_path / "b.jsonl"),)),), Bytes(), CURATION)


KILLED = """
import sys
from pathlib import Path
from slm.data.ingest.build import build
from slm.data.ingest.config import Curation
from slm.data.sources import Local
from slm.data.tokenizer import BytePairs
if __name__ == "__main__":
    source = Local(paths=(sys.argv[1],), columns=("score",))
    print("ready", flush=True)
    build(Path(sys.argv[2]), (source,), BytePairs(vocab=400), Curation(heldout=0.1), workers=int(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_kills_leave_the_same_bytes_as_none(tmp_path: Path, workers: int) -> None:
    source = corpus(tmp_path / "in", files=24, documents=150)
    began = time.monotonic()
    whole = contents(build(tmp_path / "whole", (source,), BytePairs(vocab=400), CURATION, workers=1).path)
    needed = time.monotonic() - began
    script = tmp_path / "make.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(tmp_path / "in"), str(tmp_path / "store"), str(workers)]
    rng, kills = random.Random(1), 0
    for attempt in range(60):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        if kills < 10:  # each worker setting is killed ten times
            time.sleep(rng.uniform(0, needed / (1 if attempt % 2 else 4)))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
                assert not (tmp_path / "store" / "manifest.json").exists() or (tmp_path / "store").is_dir()
        process.wait()
        if process.returncode == 0:
            if kills >= 10:
                break
            subprocess.run(["rm", "-rf", str(tmp_path / "store")], check=True)
    assert kills == 10
    assert contents(tmp_path / "store") == whole
    assert not (tmp_path / "store.partial").exists()


def test_a_filter_on_a_column_that_is_not_there_stops_at_once(tmp_path: Path) -> None:
    """It would drop every document, after hours."""
    source = corpus(tmp_path / "in")
    with pytest.raises(ConfigError, match=r"'scor'.*Did you mean 'score'"):
        build(tmp_path / "store", (source,), Bytes(), Curation(filters=("scor >= 3",)))
