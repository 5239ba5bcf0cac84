"""Reading a store: one changed bit is found wherever it is, and a remote store is read through a local copy."""

from __future__ import annotations

import random
import shutil
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from slm.config.errors import RunError
from slm.data.config import Data
from slm.data.plan.of_corpus import plan_of
from slm.data.prepare import Corpus, prepare
from slm.data.sources import Synthetic
from slm.data.store import Split, Store
from slm.data.store.checked import BLOCK, CheckedFile, Checksummer, checksums
from slm.data.store.shard import Shard, write_shard
from slm.data.tokenizer import Bytes

DATA = Data(source=Synthetic(count=600, length=100), seq_len=64, heldout=0.1)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of several checksum blocks a shard."""
    (store,) = prepare(DATA, Bytes(), tmp_path_factory.mktemp("data")).stores.values()
    assert store.split("train").tokens * 2 > 3 * BLOCK
    return store


def read_all(path: Path) -> None:
    """What training and evaluation touch: every row of an epoch, every held-out document."""
    corpus = Corpus({"synthetic": Store.open(path)})
    plan = plan_of(corpus, DATA)
    for first in range(0, plan.rows_per_epoch, 64):
        plan.rows(first, min(64, plan.rows_per_epoch - first))
    list(corpus.documents("heldout"))
    assert corpus.tokenizer.vocab_size


def test_two_hundred_flipped_bits_are_two_hundred_errors(original: Store, tmp_path: Path) -> None:
    """Also in training, for what training reads: everything but the metadata of training documents."""
    files = sorted(p.relative_to(original.path) for p in original.path.rglob("*") if p.is_file())
    sizes = np.array([(original.path / f).stat().st_size for f in files])
    rng = random.Random(0)
    places = [(file, rng.randrange(int(size))) for file, size in zip(files, sizes, strict=True) for _ in range(3)]
    while len(places) < 200:
        file = rng.choices(files, weights=sizes.tolist())[0]
        places.append((file, rng.randrange((original.path / file).stat().st_size)))
    copy = tmp_path / "copy"
    shutil.copytree(original.path, copy)
    train = {s.stem.name for s in original.split("train").shards}
    for file, at in places:
        whole = (copy / file).read_bytes()
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        (copy / file).write_bytes(damaged)
        with pytest.raises(RunError):
            Store.open(copy).verify()
        if not (file.suffix == ".meta" and file.stem in train):
            with pytest.raises(RunError):
                read_all(copy)
        (copy / file).write_bytes(whole)
    Store.open(copy).verify()
    read_all(copy)


def test_a_row_is_read_although_another_block_is_damaged(original: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(original.path, copy)
    tok = next(copy.glob("shards/00000.tok"))
    raw = bytearray(tok.read_bytes())
    raw[-1] ^= 4
    tok.write_bytes(raw)
    split = Store.open(copy).split("train")
    assert split.take(0, 100).tolist() == original.split("train").take(0, 100).tolist()
    with pytest.raises(RunError, match=r"00000.tok: block \d+ \(bytes \d+ to"):
        split.take(split.tokens - 10, 10)


def test_checksums_do_not_depend_on_how_the_bytes_come() -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, 3 * BLOCK + 17, dtype=np.uint8).tobytes()
    whole = checksums([raw])
    assert whole.tolist() == [zlib.crc32(raw[i : i + BLOCK]) for i in range(0, len(raw), BLOCK)]
    summer, at = Checksummer(), 0
    while at < len(raw):
        step = int(rng.integers(1, 2 * BLOCK))
        summer.update(raw[at : at + step])
        at += step
    assert summer.finish().tolist() == whole.tolist()
    assert checksums([]).tolist() == checksums([b""]).tolist() == []


def test_views_cross_blocks_and_end_anywhere(tmp_path: Path) -> None:
    raw = np.random.default_rng(1).integers(0, 256, 2 * BLOCK + 5, dtype=np.uint8)
    (tmp_path / "f").write_bytes(b"head" + raw.tobytes() + b"tail")
    file = CheckedFile(tmp_path / "f", len(raw), checksums([raw.tobytes()]), offset=4)
    for start, stop in ((0, 0), (0, 1), (BLOCK - 1, BLOCK + 1), (5, 2 * BLOCK + 5), (len(raw), len(raw))):
        assert file.view(start, stop).tolist() == raw[start:stop].tolist()


def shard_of(folder: Path, number: int, documents: list[list[int]]) -> Shard:
    lengths = np.array([len(d) for d in documents], np.int64)
    tokens = np.array([t for d in documents for t in d], "<u2")
    meta = pa.table({"id": [f"{number}-{i}" for i in range(len(documents))], "bytes": lengths})
    return Shard(folder, write_shard(folder / "shards", number, tokens, lengths, meta), np.dtype("<u2"))


def test_documents_are_numbered_across_shards(tmp_path: Path) -> None:
    documents = [[[1, 2, 3], [4], []], [[5, 6]], [[7], [8, 9, 10, 11]]]
    split = Split([shard_of(tmp_path, i, docs) for i, docs in enumerate(documents)])
    every = [d for docs in documents for d in docs]
    assert len(split) == 6
    assert split.tokens == 11
    assert split.lengths().tolist() == [len(d) for d in every]
    for first in range(7):
        for last in range(first, 7):
            assert split.lengths(first, last).tolist() == [len(d) for d in every[first:last]]
    for i, doc in enumerate(every):
        assert split.read(i, 0, len(doc)).tolist() == doc
        if doc:
            assert split.take(int(split.offsets(i, i + 1)[0]), len(doc)).tolist() == doc
    assert [d.tokens.tolist() for d in split.documents()] == every


def remote(path: Path) -> str:
    """The files of a store under a URL of fsspec's in-memory file system."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.rm("/bucket", recursive=True) if fs.exists("/bucket") else None
    for file in path.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"/bucket/{file.relative_to(path)}", file.read_bytes())
    return "memory://bucket"


def test_a_remote_store_gives_the_same_documents_and_brings_each_stretch_once(original: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    import fsspec

    url = remote(original.path)
    fs = fsspec.filesystem("memory")
    brought: list[str] = []
    cat = type(fs).cat_file

    def counted(self, path, start=None, end=None, **kwargs):  # type: ignore[no-untyped-def]
        brought.append(f"{Path(path).name}@{start}")
        return cat(self, path, start=start, end=end, **kwargs)

    monkeypatch.setattr(type(fs), "cat_file", counted)
    store = Store.open(url, cache_dir=tmp_path)
    assert not [b for b in brought if ".tok" in b]
    for split in ("train", "heldout"):
        assert [(d.id, d.tokens.tolist()) for d in store.documents(split)] == [
            (d.id, d.tokens.tolist()) for d in original.documents(split)
        ]
    assert len(brought) == len(set(brought))
    brought.clear()
    again = Store.open(url, cache_dir=tmp_path)
    again.verify()
    assert brought == ["manifest.json@None"]  # the rest lies in the local copy


def test_a_damaged_local_copy_is_mended_and_a_damaged_original_is_an_error(original: Store, tmp_path: Path) -> None:
    import fsspec

    url = remote(original.path)
    store = Store.open(url, cache_dir=tmp_path)
    store.verify()
    (tok,) = store.path.glob("shards/00000.tok")
    with tok.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\xff\xff")
    Store.open(url, cache_dir=tmp_path).verify()
    fs = fsspec.filesystem("memory")
    raw = bytearray(fs.cat_file("/bucket/shards/00000.tok"))
    raw[7] ^= 1
    fs.pipe_file("/bucket/shards/00000.tok", bytes(raw))
    with pytest.raises(RunError, match=r"block 0 .* differs"):
        Store.open(url, cache_dir=tmp_path / "other").verify()


def test_no_store_at_a_url_is_explained() -> None:
    with pytest.raises(RunError, match=r"no token store at memory://nothing.*manifest.json"):
        Store.open("memory://nothing")
