"""Stores over ready-made tokens: nothing copied, everything checked, the same documents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from token_files import write_datatrove, write_llmc, write_megatron, write_olmo

from slm.config.errors import ConfigError, RunError
from slm.data.ingest.config import is_heldout
from slm.data.ingest.imported import import_tokens
from slm.data.store import Store
from slm.data.tokenizer import Bytes, FromFile

TEXTS = [f"{i} says {'la ' * (i % 40)}{i}" for i in range(300)]


@pytest.fixture
def tokenizer(tmp_path: Path) -> FromFile:
    made = Bytes().load(lambda: ())
    (tmp_path / "tokenizer.json").write_bytes(made.to_bytes())
    return FromFile(path=str(tmp_path / "tokenizer.json"))


def ids(tokenizer: FromFile) -> tuple[list[list[int]], int]:
    made = tokenizer.load(lambda: ())
    return made.encode_batch(TEXTS), made.eot_id


def write(kind: str, folder: Path, documents: list[list[int]], eot: int) -> Path:
    """The documents in a format, in a folder of their own."""
    folder.mkdir()
    if kind == "datatrove":
        write_datatrove(folder / "00000_tokens.ds", [[*d, eot] for d in documents])
    elif kind == "olmo":
        write_olmo(
            folder / "part-00-00000.npy",
            [[*d, eot] for d in documents],
            ids=[f"doc-{i}" for i in range(len(documents))],
        )
    elif kind == "megatron":
        write_megatron(folder / "corpus.bin", [[[*d, eot]] for d in documents])
    elif kind == "llmc":
        write_llmc(folder / "train_000001.bin", [i for d in documents for i in (eot, *d)])
    else:
        (folder / "tokens.jsonl").write_text("".join(json.dumps({"tokens": [*d, eot]}) + "\n" for d in documents))
    return folder


@pytest.mark.parametrize("kind", ["datatrove", "olmo", "megatron", "llmc", "columns"])
def test_every_format_gives_the_documents_and_their_bytes(kind: str, tmp_path: Path, tokenizer: FromFile) -> None:
    documents, eot = ids(tokenizer)
    folder = write(kind, tmp_path / "foreign", documents, eot)
    store = import_tokens(tmp_path / "store", [folder], tokenizer, heldout=0.1)
    store.verify()
    found = [(d.tokens.tolist(), d.bytes) for split in ("train", "heldout") for d in store.documents(split)]
    assert sorted(found) == sorted((d, len(t.encode())) for d, t in zip(documents, TEXTS, strict=True))
    assert {d.id for d in store.documents("heldout")} == {
        d.id for split in ("train", "heldout") for d in store.documents(split) if is_heldout(d.id, 0.1)
    }
    assert store.manifest["accounting"] == {"read": 300, "kept": 300, "dropped": {}}
    links = [p for p in (store.path / "shards").glob("*.tok") if p.is_symlink()]
    assert len(links) == (0 if kind == "columns" else 2)


def test_a_bit_that_changes_in_the_foreign_file_is_found(tmp_path: Path, tokenizer: FromFile) -> None:
    documents, eot = ids(tokenizer)
    folder = write("datatrove", tmp_path / "foreign", documents, eot)
    import_tokens(tmp_path / "store", [folder], tokenizer)
    file = folder / "00000_tokens.ds"
    raw = bytearray(file.read_bytes())
    raw[4000] ^= 1
    file.write_bytes(raw)
    with pytest.raises(RunError, match=r"block 0 .*differs"):
        list(Store.open(tmp_path / "store").documents("train"))
    file.write_bytes(raw[:-2])
    with pytest.raises(RunError, match=r"promises \d+ bytes, but the file has"):
        Store.open(tmp_path / "store")
    file.unlink()
    with pytest.raises(RunError, match="is missing"):
        Store.open(tmp_path / "store")


def test_a_tokenizer_that_lacks_the_ids_and_an_existing_store_are_refused(tmp_path: Path, tokenizer: FromFile) -> None:
    documents, eot = ids(tokenizer)
    folder = write("datatrove", tmp_path / "foreign", [[*documents[0], 5000], *documents[1:]], eot)
    with pytest.raises(RunError, match="5000"):
        import_tokens(tmp_path / "store", [folder], tokenizer)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("store")]
    (tmp_path / "store").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        import_tokens(tmp_path / "store", [folder], tokenizer)


def test_documents_across_chunks_have_all_their_bytes(tmp_path: Path, tokenizer: FromFile, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("slm.data.ingest.imported.CHUNK", 37)
    documents, eot = ids(tokenizer)
    folder = write("megatron", tmp_path / "foreign", documents, eot)
    store = import_tokens(tmp_path / "store", [folder], tokenizer)
    assert [d.bytes for d in store.documents("train")] == [len(t.encode()) for t in TEXTS]
    assert np.array_equal(store.split("train").lengths(), [len(d) for d in documents])
