from __future__ import annotations

from pathlib import Path

import pytest
from token_files import BOS, DOCUMENTS, EOS, VOCAB, check, flat, write_llmc

from slm.config.errors import ConfigError, RunError
from slm.data.importers import detect
from slm.data.importers.llmc import Llmc

BEGUN = flat([[BOS, *d] for d in DOCUMENTS])


def test_documents_begin_with_the_mark(tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "fineweb_train_000001.bin", BEGUN)
    file = Llmc(bos=BOS).read(path, VOCAB)
    check(file, DOCUMENTS)
    assert (file.byte_offset, file.dtype.str, file.specials) == (1024, "<u2", {BOS: 4})
    assert (file.empty, file.pieces) == (0, 0)
    assert detect(tmp_path) == "llmc"
    assert Llmc().files(tmp_path) == [path]


@pytest.mark.parametrize(
    ("magic", "version", "width", "mark", "name"),
    [(20240520, 1, 2, 50256, "gpt2"), (20240801, 7, 4, 128000, "llama-3")],
)
def test_each_kind_has_its_own_width_and_mark(
    tmp_path: Path, magic: int, version: int, width: int, mark: int, name: str
) -> None:
    ids = flat([[mark, *d] for d in DOCUMENTS])
    file = Llmc().read(write_llmc(tmp_path / "a.bin", ids, magic, version, width), mark + 1)
    check(file, DOCUMENTS)
    assert (file.dtype.itemsize, file.specials, file.tokenizer) == (width, {mark: 4}, name)
    with pytest.raises(ConfigError, match=f"bos={mark}, but the tokenizer has ids below {mark}"):
        Llmc().read(tmp_path / "a.bin", mark)


def test_a_shard_that_begins_and_ends_within_documents(tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "a.bin", [20, 21, BOS, BOS, *BEGUN, BOS])
    file = Llmc(bos=BOS).read(path, VOCAB)
    check(file, [[20, 21], *DOCUMENTS])
    assert (file.pieces, file.empty) == (1, 3)
    assert file.id_of(0) == "a.bin:0"
    assert file.specials[BOS] == len(file) - file.pieces + file.empty  # every mark began a document


def test_an_end_mark_can_be_named_too(tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "a.bin", flat([[BOS, *d, EOS] for d in [*DOCUMENTS, []]]))
    file = Llmc(bos=BOS, eos=EOS).read(path, VOCAB)
    check(file, DOCUMENTS)
    assert file.specials == {BOS: 5, EOS: 5}
    with pytest.raises(ConfigError, match="end with id 99"):
        Llmc(bos=BOS).read(path, VOCAB)


def test_faults_are_named(tmp_path: Path) -> None:
    path, part = tmp_path / "a.bin", Llmc(bos=BOS)
    whole = write_llmc(path, BEGUN).read_bytes()
    for raw, message in (
        (whole[:-2], f"promises {len(BEGUN)} tokens, and {len(BEGUN) - 1} follow"),
        (whole + b"\0\0", "promises"),
        (whole[:-1], "no whole number of uint16"),
        (whole[:600], "ends within its header"),
        (b"", "begins with 0"),
        (b"hello, world", "none of llm.c's numbers"),
    ):
        path.write_bytes(raw)
        with pytest.raises(RunError, match=message):
            part.read(path, VOCAB)
    with pytest.raises(RunError, match="version 2"):
        part.read(write_llmc(path, BEGUN, version=2), VOCAB)
    with pytest.raises(RunError, match="evaluation files"):
        part.read(write_llmc(path, BEGUN, magic=20240522), VOCAB)
    with pytest.raises(RunError, match="id 97, which should stand before every document, doesn't occur"):
        Llmc(bos=97).read(write_llmc(path, BEGUN), VOCAB)
    with pytest.raises(RunError, match="doesn't occur"):
        part.read(write_llmc(path, []), VOCAB)
