from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from token_files import BOS, DOCUMENTS, EOS, VOCAB, check, ended, flat, packed, write_olmo

from slm.config.errors import ConfigError, RunError
from slm.data.importers import detect
from slm.data.importers.olmo import Olmo

IDS = ["a", 'b,\n"b"', "c", "é"]


@pytest.mark.parametrize("width", [2, 4])
def test_the_table_says_where_documents_are_and_how_they_are_called(tmp_path: Path, width: int) -> None:
    documents = [*ended(DOCUMENTS[:2]), [EOS], *ended(DOCUMENTS[2:])]
    path = write_olmo(tmp_path / "part-00-00000.npy", documents, width, [*IDS[:2], "empty", *IDS[2:]])
    file = Olmo(eos=EOS).read(path, VOCAB)
    check(file, DOCUMENTS)
    assert file.ids == IDS
    assert file.id_of(1) == IDS[1]
    assert file.dtype.str == f"<u{width}"
    assert file.empty == 1
    assert detect(tmp_path) == "olmo"
    assert Olmo().files(tmp_path) == [path]
    assert Olmo().files(tmp_path / "part-00-00000.csv.gz") == [path]


@pytest.mark.parametrize("width", ["u16", "u32"])
def test_without_a_table_marks_tell_documents_apart(tmp_path: Path, width: str) -> None:
    documents = [*ended(DOCUMENTS[:2]), [EOS], *ended(DOCUMENTS[2:])]
    path = write_olmo(tmp_path / "part-00-00000.npy", documents, int(width[1:]) // 8)
    file = Olmo(eos=EOS, dtype=width).read(path, VOCAB)
    check(file, DOCUMENTS)
    assert (file.ids, file.empty, file.specials) == (None, 1, {EOS: 5})
    assert file.id_of(2) == "part-00-00000.npy:7"


def test_both_marks(tmp_path: Path) -> None:
    documents = [[BOS, *d, EOS] for d in [*DOCUMENTS, []]]
    path = write_olmo(tmp_path / "a.npy", documents)
    file = Olmo(eos=EOS, bos=BOS, dtype="u16").read(path, VOCAB)
    check(file, DOCUMENTS)
    assert (file.specials, file.empty) == ({BOS: 5, EOS: 5}, 1)
    with pytest.raises(ConfigError, match="begin with id 98"):
        Olmo(eos=EOS, dtype="u16").read(path, VOCAB)


def test_one_id_on_both_sides(tmp_path: Path) -> None:
    """OLMo 2's tokenizer begins and ends documents with the same id."""
    documents = [[EOS, *d, EOS] for d in DOCUMENTS]
    part = Olmo(eos=EOS, bos=EOS, dtype="u16")
    scanned = part.read(write_olmo(tmp_path / "a.npy", documents), VOCAB)
    listed = part.read(write_olmo(tmp_path / "b.npy", documents, ids=IDS), VOCAB)
    for file in (scanned, listed):
        check(file, DOCUMENTS)
        assert (file.specials, file.empty, file.inner) == ({EOS: 8}, 0, 0)


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i4"])
def test_a_real_numpy_file_has_a_header_to_skip(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array(flat(ended(DOCUMENTS)), dtype))
    file = Olmo(eos=EOS).read(path, VOCAB)
    check(file, DOCUMENTS)
    assert file.byte_offset == 128
    with pytest.raises(ConfigError, match="its header says"):
        Olmo(eos=EOS, dtype="u32" if dtype == "<u2" else "u16").read(path, VOCAB)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="begins as a NumPy file"):
        Olmo(eos=EOS).read(path, VOCAB)


def test_numpy_files_that_hold_something_else(tmp_path: Path) -> None:
    for array in (np.zeros((2, 2), "<u2"), np.zeros(3, "<i8"), np.zeros(3, ">u2"), np.zeros(3, np.float32)):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(RunError, match="one row of u16, u32 or i32"):
            Olmo(eos=EOS).read(tmp_path / "a.npy", VOCAB)
    np.save(tmp_path / "a.npy", np.array([1, -1, EOS], "<i4"))
    with pytest.raises(RunError, match="id 4294967295 at token 1"):
        Olmo(eos=EOS).read(tmp_path / "a.npy", VOCAB)


def test_what_must_be_said(tmp_path: Path) -> None:
    path = write_olmo(tmp_path / "a.npy", ended(DOCUMENTS))
    with pytest.raises(ConfigError, match=r"no a\.csv\.gz beside it, .*eos=ID"):
        Olmo(dtype="u16").read(path, VOCAB)
    with pytest.raises(ConfigError, match="set dtype=u16 or dtype=u32"):
        Olmo(eos=EOS).read(path, VOCAB)
    with pytest.raises(RunError, match="id 50, which should stand after every document, doesn't occur"):
        Olmo(eos=50, dtype="u16").read(path, VOCAB)
    with pytest.raises(RunError, match="no whole number of uint32"):
        Olmo(eos=EOS, dtype="u32").read(path, VOCAB)


def test_a_document_cut_off_at_the_end(tmp_path: Path) -> None:
    path = write_olmo(tmp_path / "a.npy", [*ended(DOCUMENTS), [14, 15]])
    with pytest.raises(RunError, match=r"2 tokens follow the last mark \(99\)"):
        Olmo(eos=EOS, dtype="u16").read(path, VOCAB)
    file = Olmo(eos=EOS, dtype="u16", pieces=True).read(path, VOCAB)
    check(file, [*DOCUMENTS, [14, 15]])
    assert file.pieces == 1


def test_tables_with_faults(tmp_path: Path) -> None:
    path, table = tmp_path / "a.npy", tmp_path / "a.csv.gz"
    part = Olmo(eos=EOS)

    def write(text: str) -> None:
        table.write_bytes(gzip.compress(text.encode()))

    write_olmo(path, ended(DOCUMENTS), ids=IDS)
    raw = table.read_bytes()
    table.write_bytes(raw[:-9])
    with pytest.raises(RunError, match=r"a\.csv\.gz: can't be read beyond row 4 .*cut off"):
        part.read(path, VOCAB)
    table.write_bytes(b"not gzip")
    with pytest.raises(RunError, match="can't be read"):
        part.read(path, VOCAB)
    write("0,4,a,s,0\n4,x,b,s,1\n")
    with pytest.raises(RunError, match="row 2: isn't start, end, id"):
        part.read(path, VOCAB)
    write("0,4\n")
    with pytest.raises(RunError, match="row 1: isn't start, end, id"):
        part.read(path, VOCAB)
    write("0,4,a,s,0\n5,6,b,s,1\n")
    with pytest.raises(RunError, match="row 2: starts at token 5, but the one before ends at 4"):
        part.read(path, VOCAB)
    write("0,4,a,s,0\n4,2,b,s,1\n2,17,c,s,1\n")
    with pytest.raises(RunError, match="before it begins"):
        part.read(path, VOCAB)
    write("0,4,a,s,0\n4,6,b,s,1\n")
    with pytest.raises(RunError, match="34 bytes aren't 6 ids"):
        part.read(path, VOCAB)
    write("0,4,a,s,0\n4,17,b,s,1\n")
    file = part.read(path, VOCAB)  # the table rules: marks inside of a document are noticed, no more
    assert (len(file), file.inner) == (2, 2)
    write("0,5,a,s,0\n5,17,b,s,1\n")
    with pytest.raises(RunError, match="1 of 2 documents don't end with eos=99; the first is a,"):
        part.read(path, VOCAB)
    path.write_bytes(packed([1, 2, 3]))
    with pytest.raises(RunError, match="6 bytes aren't 17 ids"):
        part.read(path, VOCAB)
