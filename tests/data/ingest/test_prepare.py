from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slm.config.errors import ConfigError, RunError
from slm.data.config import Data
from slm.data.ingest.config import is_heldout
from slm.data.prepare import open_corpus, prepare, store_paths, without_text
from slm.data.sources import Local, Synthetic
from slm.data.store import Store
from slm.data.tokenizer import BytePairs, Bytes, FromFile, TokenizerPart

SOURCE = Synthetic(count=200, length=60)
DATA = Data(source=SOURCE, seq_len=64, heldout=0.1)


def made(data: Data, tokenizer: TokenizerPart, data_dir: Path) -> Store:
    """The only store of a run's data."""
    (store,) = prepare(data, tokenizer, data_dir).stores.values()
    return store


def store_path(data: Data, tokenizer: TokenizerPart) -> str:
    (path,) = store_paths(data, tokenizer, "data").values()
    return str(path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return made(DATA, BytePairs(vocab=300), tmp_path / "data")


def test_every_document_is_there_once_with_its_exact_text(store: Store) -> None:
    texts = {d.id: d.text for d in SOURCE.documents()}
    stored = [d for split in ("train", "heldout") for d in store.documents(split)]
    assert sorted(d.id for d in stored) == sorted(texts)
    for doc in stored:
        assert store.tokenizer.decode_bytes(doc.tokens) == texts[doc.id].encode()
        assert doc.bytes == len(texts[doc.id].encode())
    assert {d.id for d in store.documents("heldout")} == {i for i in texts if is_heldout(i, 0.1)}


def test_reopened_not_remade(store: Store, tmp_path: Path) -> None:
    before = (store.path / "manifest.json").stat().st_mtime_ns
    again = made(DATA, BytePairs(vocab=300), tmp_path / "data")
    assert (again.path / "manifest.json").stat().st_mtime_ns == before
    assert {p.name for p in (tmp_path / "data").iterdir()} == {store.path.name, "asked"}  # no locks, no leftovers


def test_stores_outlive_their_text(tmp_path: Path) -> None:
    """Who removed terabytes of text once they were tokenised can go on, evaluate, and begin another run on them."""
    text, folder = tmp_path / "text", tmp_path / "data"
    for name in "ab":
        (text / name).mkdir(parents=True)
        for i in range(40):
            (text / name / f"{i}.txt").write_text(f"{name} {i} some words, and some more of them {i * i}")
    sources = {name: {"source": {"name": "local", "paths": [str(text / name)]}} for name in "ab"}
    data = Data(sources=sources, mixture=[{"weights": {"a": 0.5, "b": 0.5}}], seq_len=64, heldout=0.1)
    first = prepare(data, BytePairs(vocab=270), folder)
    shutil.move(text / "a", tmp_path / "a")
    assert without_text(data) == ["a"]
    assert prepare(data, BytePairs(vocab=270), folder).stores["b"].path == first.stores["b"].path
    (text / "b" / "new.txt").write_text("more text")
    with pytest.raises(
        ConfigError, match="names no file"
    ):  # b has changed, and what it shares with a can't be learned again
        prepare(data, BytePairs(vocab=270), folder)
    shutil.rmtree(text)
    again, opened = prepare(data, BytePairs(vocab=270), folder), open_corpus(data, BytePairs(vocab=270), folder)
    for corpus in (again, opened):
        assert {n: s.path for n, s in corpus.stores.items()} == {n: s.path for n, s in first.stores.items()}
    with pytest.raises(ConfigError, match="names no file"):
        prepare(data, BytePairs(vocab=271), folder)
    with pytest.raises(ConfigError, match="names no file"):
        prepare(data.with_(filters=("chars > 3",)), BytePairs(vocab=270), folder)


def mixture(counts: dict[str, int]) -> Data:
    """Several synthetic sources, in equal shares."""
    sources = {
        name: {"source": {"name": "synthetic", "count": n, "seed": i}} for i, (name, n) in enumerate(counts.items())
    }
    return Data(sources=sources, mixture=[{"weights": dict.fromkeys(counts, 1 / len(counts))}], seq_len=64, heldout=0.1)


def test_sources_that_share_a_trained_tokenizer_are_reopened_not_remade(tmp_path: Path) -> None:
    data, tokenizer, folder = mixture({"a": 60, "b": 80}), BytePairs(vocab=300), tmp_path / "data"
    first = prepare(data, tokenizer, folder)
    assert len({store.manifest["tokenizer"]["sha256"] for store in first.stores.values()}) == 1
    before = {name: (store.path / "manifest.json").stat().st_mtime_ns for name, store in first.stores.items()}
    again = prepare(data, tokenizer, folder)
    assert {n: (s.path / "manifest.json").stat().st_mtime_ns for n, s in again.stores.items()} == before
    shutil.rmtree(folder / "tokenizers")  # it stands in the stores as well
    assert prepare(data, tokenizer, folder).tokenizer_bytes == first.tokenizer_bytes
    shutil.rmtree(again.stores["b"].path)  # the missing one alone is made, with the same tokenizer
    third = prepare(data, tokenizer, folder)
    assert third.tokenizer_bytes == first.tokenizer_bytes
    assert (third.stores["a"].path / "manifest.json").stat().st_mtime_ns == before["a"]


def test_a_ready_made_store_is_looked_at_before_anything_is_tokenised(store: Store, tmp_path: Path) -> None:
    sources = {"text": {"source": {"name": "synthetic", "count": 60}}, "store": {"store": str(store.path)}}
    data = Data(sources=sources, mixture=[{"weights": {"text": 0.5, "store": 0.5}}], seq_len=64, heldout=0.1)
    with pytest.raises(ConfigError, match="has a tokenizer already"):
        prepare(data, BytePairs(vocab=300), tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_a_tokenizers_file_counts_by_its_contents_not_by_its_path(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    shutil.copy(store.path / "tokenizer.json", copy)
    here, there = (FromFile(path=str(path)) for path in (store.path / "tokenizer.json", copy))
    assert store_path(DATA, here) == store_path(DATA, there)
    first = made(DATA, here, tmp_path / "files")
    assert made(DATA, there, tmp_path / "files").path == first.path
    copy.write_bytes(made(DATA, BytePairs(vocab=290), tmp_path / "less").tokenizer_bytes)
    assert store_path(DATA, there) != store_path(DATA, here)


def test_the_same_input_gives_the_same_bytes(store: Store, tmp_path: Path) -> None:
    other = made(DATA, BytePairs(vocab=300), tmp_path / "other")
    for file in sorted(p for p in store.path.rglob("*") if p.is_file()):
        assert file.read_bytes() == (other.path / file.relative_to(store.path)).read_bytes(), file.name


def test_other_sources_and_tokenizers_get_other_stores(tmp_path: Path) -> None:
    paths = {
        store_path(DATA, BytePairs(vocab=300)),
        store_path(DATA, BytePairs(vocab=301)),
        store_path(DATA, Bytes()),
        store_path(DATA.with_(source=Synthetic(seed=1)), Bytes()),
        store_path(DATA.with_(heldout=0.2), Bytes()),
    }
    assert len(paths) == 5
    assert store_path(DATA.with_(seq_len=32, seed=9), Bytes()) in paths  # rows are the plan's business


def test_duplicates_and_empty_documents_are_dropped_and_counted(tmp_path: Path) -> None:
    lines = [{"text": t, "id": str(i)} for i, t in enumerate(["a b c"] * 3 + ["", "d"] + [f"x{i}" for i in range(60)])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = made(DATA.with_(source=Local(paths=("a.jsonl",))), Bytes(), tmp_path / "data")
    assert store.manifest["accounting"] == {"read": 65, "kept": 62, "dropped": {"empty": 1, "duplicate": 2}}


def test_damaged_lengths_never_become_a_wrong_bits_per_byte(store: Store) -> None:
    meta = next((store.path / "shards").glob("*.meta"))
    raw = meta.read_bytes()
    for damaged in (b"", raw[: len(raw) // 2], raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]):
        meta.write_bytes(damaged)
        with pytest.raises(RunError, match=meta.name):
            list(Store.open(store.path).documents("train"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", "written in format None"),
        ("{", "not valid JSON"),
        ('{"format": 2}', "lacks accounting, block, content_sha256, dtype"),
    ],
)
def test_a_manifest_that_is_none_is_explained(store: Store, content: str, expected: str) -> None:
    (store.path / "manifest.json").write_text(content)
    with pytest.raises(RunError, match=expected):
        Store.open(store.path)


@pytest.mark.parametrize("suffix", [".tok", ".idx", ".meta"])
def test_one_flipped_bit_is_named(store: Store, suffix: str) -> None:
    shard = next((store.path / "shards").glob(f"*{suffix}"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(RunError, match=shard.name):
        Store.open(store.path).verify()
    if suffix == ".tok":
        with pytest.raises(RunError, match=r"block 0 \(bytes 0 to"):
            list(Store.open(store.path).documents("train"))


def test_truncated_shard_and_missing_manifest_are_refused(store: Store) -> None:
    shard = store.path / "shards" / "00000.tok"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(RunError, match="promises"):
        Store.open(store.path)
    (store.path / "manifest.json").unlink()
    with pytest.raises(RunError, match="not finished"):
        Store.open(store.path)
    with pytest.raises(RunError, match="does not exist"):
        Store.open(store.path / "nowhere")


def test_other_format_and_other_tokenizer_are_refused(store: Store) -> None:
    raw = (store.path / "manifest.json").read_bytes()
    manifest = json.loads(raw)
    (store.path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(RunError, match="format 99"):
        Store.open(store.path)
    (store.path / "manifest.json").write_bytes(raw)
    (store.path / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(RunError, match="not the tokenizer"):
        Store.open(store.path)


def test_no_documents_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="no training documents"):
        prepare(DATA.with_(source=Local(paths=("empty.jsonl",))), Bytes(), tmp_path / "data")
    assert not list((tmp_path / "data").glob("*/manifest.json"))


def test_kill_in_the_middle_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    code = (
        "from slm.data.prepare import prepare; from slm.data.config import Data\n"
        "from slm.data.tokenizer import BytePairs\n"
        "from slm.data.ingest.build import Silent\n"
        "class Say(Silent):\n"
        "    def stage(self, name, total_bytes=0): print(name, flush=True)\n"
        "prepare(Data(heldout=0.05), BytePairs(vocab=1000), 'data', progress=Say())"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "training the tokenizer"
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "data").glob("*/manifest.json"))
    assert made(DATA, Bytes(), tmp_path / "data").split("train").tokens > 0


def test_a_ready_made_store_of_another_tokenizer_is_refused(store: Store, tmp_path: Path) -> None:
    from slm.data.prepare import open_corpus

    data = Data(store=str(store.path), seq_len=64)
    file = FromFile(path=str(store.path / "tokenizer.json"))
    assert prepare(data, file, tmp_path).counts("train") == open_corpus(data, file, tmp_path).counts("train")
    for opens in (prepare, open_corpus):
        with pytest.raises(ConfigError, match=r"another tokenizer.*tokenizer.path=.*tokenizer.json"):
            opens(data, Bytes(), tmp_path)
        with pytest.raises(ConfigError, match="would learn a new one"):
            opens(data, BytePairs(vocab=300), tmp_path)
