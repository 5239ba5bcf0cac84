from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from token_files import DOCUMENTS, EOS, VOCAB, check, ended, write_megatron

from slm.config.errors import ConfigError, RunError
from slm.data.importers import detect
from slm.data.importers.megatron import Megatron

ONE_EACH = [[d] for d in ended(DOCUMENTS)]


@pytest.mark.parametrize("code", [8, 4])
def test_documents_with_and_without_marks(tmp_path: Path, code: int) -> None:
    path = write_megatron(tmp_path / "a_text_document.bin", ONE_EACH, code)
    file = Megatron(eos=EOS).read(path, VOCAB)
    check(file, DOCUMENTS)
    assert file.dtype.str == ("<u2" if code == 8 else "<u4")
    assert file.specials == {EOS: 4}
    check(Megatron().read(write_megatron(tmp_path / "b.bin", [[d] for d in DOCUMENTS], code), VOCAB), DOCUMENTS)
    assert detect(tmp_path) == detect(tmp_path / "b.idx") == "megatron"
    assert [p.name for p in Megatron().files(tmp_path)] == ["a_text_document.bin", "b.bin"]
    with pytest.raises(ConfigError, match="all 4 documents end with id 99"):
        Megatron().read(path, VOCAB)


def test_a_document_of_several_sequences(tmp_path: Path) -> None:
    path = write_megatron(tmp_path / "a.bin", [[[1, 2], [3, EOS]], [], [[4, EOS]], [[EOS]]])
    file = Megatron(eos=EOS).read(path, VOCAB)
    check(file, [[1, 2, 3], [4]])
    assert file.empty == 2


def test_faults_are_named(tmp_path: Path) -> None:
    part = Megatron(eos=EOS)

    def fresh(code: int = 8) -> tuple[Path, Path, bytearray]:
        path = write_megatron(tmp_path / "a.bin", ONE_EACH, code)
        return path, path.with_suffix(".idx"), bytearray(path.with_suffix(".idx").read_bytes())

    def refused(message: str, change: bytes | None = None, at: int = 0, end: bytes | None = None) -> None:
        path, index, raw = fresh()
        if change is not None:
            raw[at : at + len(change)] = change
        index.write_bytes(bytes(raw) + (end or b""))
        with pytest.raises(RunError, match=message):
            part.read(path, VOCAB)

    refused("doesn't begin with MMIDIDX", b"XXXX")
    refused("fairseq's older format", b"TNTIDX\0\0")
    refused("version 2", struct.pack("<Q", 2), 9)
    refused(r"type 5 \(int64\)", bytes([5]), 17)
    refused(r"type 77 \(an unknown type\)", bytes([77]), 17)
    refused("5 sequences and 5 bounds need 134 bytes; it has 122", struct.pack("<Q", 5), 18)
    refused("4 sequences and 99 bounds", struct.pack("<Q", 99), 26)
    refused("multimodal", end=bytes(4))
    refused("sequence 1 has a negative length", struct.pack("<i", -2), 34 + 4)
    refused("sequence 2 should lie at byte 14, not 12", struct.pack("<i", 3), 34 + 4)
    refused("sequence 1 should lie at byte 8, not 9", struct.pack("<q", 9), 50 + 8)
    refused("has 17 tokens, but a.idx promises 20", struct.pack("<i", 6), 34 + 12)
    refused("don't rise from 0 to 4", struct.pack("<q", 3), 82 + 8)
    refused("don't rise from 0 to 4", struct.pack("<q", 5), 82 + 32)
    path, index, raw = fresh()
    index.write_bytes(raw[:20])
    with pytest.raises(RunError, match="ends within its header"):
        part.read(path, VOCAB)
    index.write_bytes(raw[:-1])
    with pytest.raises(RunError, match="it has 121"):
        part.read(path, VOCAB)
    index.unlink()
    with pytest.raises(RunError, match=r"a\.idx: is missing"):
        part.read(path, VOCAB)
    path, index, raw = fresh()
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(RunError, match=r"has 16 tokens, but a\.idx promises 17"):
        part.read(path, VOCAB)
    path, index, raw = fresh(4)
    np.array([1, -5, 3, EOS, *range(13)], "<i4").tofile(path)
    with pytest.raises(RunError, match="id 4294967291 at token 1"):
        part.read(path, VOCAB)
    path, index, raw = fresh()
    with pytest.raises(RunError, match="4 of 4 documents don't end with eos=98"):
        Megatron(eos=98).read(path, VOCAB)


@pytest.mark.parametrize("width", [2, 4])
def test_what_datatrove_writes_for_megatron(tmp_path: Path, width: int) -> None:
    pytest.importorskip("datatrove")
    from datatrove.pipeline.tokens.megatron_tokenizer import MegatronTokenizedFile

    out = MegatronTokenizedFile(str(tmp_path), "a", token_size=width)
    for document in ended(DOCUMENTS):
        out.write(document)
    out.close()
    check(Megatron(eos=EOS).read(tmp_path / "a.bin", VOCAB), DOCUMENTS)
