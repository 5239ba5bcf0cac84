from __future__ import annotations

import struct
from pathlib import Path

import pytest
from token_files import BOS, DOCUMENTS, EOS, VOCAB, check, ended, write_datatrove

from slm.config.errors import ConfigError, RunError
from slm.data.importers import detect
from slm.data.importers.datatrove import Datatrove


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("metadata", [True, False])
def test_documents_are_found_and_marks_left_out(tmp_path: Path, width: int, metadata: bool) -> None:
    path = write_datatrove(tmp_path / "000_shuffled.ds", ended([*DOCUMENTS, []]), width, metadata)
    file = Datatrove(eos=EOS).read(path, VOCAB)
    check(file, DOCUMENTS)
    assert file.dtype.str == f"<u{width}"
    assert file.specials == {EOS: 5}
    assert (file.empty, file.pieces, file.inner) == (1, 0, 0)
    assert file.tokenizer == ("gpt2" if metadata else None)
    assert file.id_of(1) == "000_shuffled.ds:4"
    assert detect(tmp_path) == detect(path) == detect(tmp_path / "000_shuffled.ds.index") == "datatrove"
    assert Datatrove().files(tmp_path) == [path]


def test_documents_without_marks_and_with_both(tmp_path: Path) -> None:
    path = write_datatrove(tmp_path / "a.ds", DOCUMENTS)
    check(Datatrove().read(path, VOCAB), DOCUMENTS)
    both = [[BOS, *d, EOS] for d in [*DOCUMENTS, []]]
    file = Datatrove(eos=EOS, bos=BOS).read(write_datatrove(tmp_path / "b.ds", both), VOCAB)
    check(file, DOCUMENTS)
    assert file.specials == {BOS: 5, EOS: 5}
    assert file.empty == 1


def test_marks_that_aren_t_named_are_noticed(tmp_path: Path) -> None:
    path = write_datatrove(tmp_path / "a.ds", ended(DOCUMENTS))
    with pytest.raises(ConfigError, match=r"all 4 documents end with id 99\. .*eos=99"):
        Datatrove().read(path, VOCAB)
    check(Datatrove(unmarked=True).read(path, VOCAB), ended(DOCUMENTS))
    path = write_datatrove(tmp_path / "b.ds", [[BOS, *d] for d in DOCUMENTS])
    with pytest.raises(ConfigError, match=r"all 4 documents begin with id 98\. .*bos=98"):
        Datatrove().read(path, VOCAB)


def test_pieces_are_refused_or_counted(tmp_path: Path) -> None:
    path = write_datatrove(tmp_path / "a.ds", [[1, 2, EOS], [3, 4], [5, EOS, 6, EOS]])
    with pytest.raises(
        RunError, match=r"1 of 3 documents don't end with eos=99; the first is the one at token 3, .* with 4"
    ):
        Datatrove(eos=EOS).read(path, VOCAB)
    file = Datatrove(eos=EOS, pieces=True).read(path, VOCAB)
    check(file, [[1, 2], [3, 4], [5, EOS, 6]])
    assert (file.pieces, file.inner) == (1, 1)


def test_faults_are_named(tmp_path: Path) -> None:
    path = write_datatrove(tmp_path / "a.ds", ended(DOCUMENTS))
    index, metadata = tmp_path / "a.ds.index", tmp_path / "a.ds.metadata"
    part, whole = Datatrove(eos=EOS), path.read_bytes()

    path.write_bytes(whole[:-4])
    with pytest.raises(RunError, match="has 15 tokens, but its metadata promises 17"):
        part.read(path, VOCAB)
    path.write_bytes(whole[:-3])
    with pytest.raises(RunError, match="no whole number of uint16"):
        part.read(path, VOCAB)
    metadata.unlink()
    with pytest.raises(RunError, match="can't be told: its 31 bytes aren't 17 ids"):
        part.read(path, VOCAB)
    path.write_bytes(whole[:-2])  # an even number of ids: they can be taken for half as many wide ones
    with pytest.raises(RunError, match=r"documents end at token 17, but a\.ds has 8"):
        Datatrove(eos=EOS, dtype="u32").read(path, VOCAB)
    path.write_bytes(whole)
    index.write_bytes(struct.pack("<4Q", 4, 3, 14, 17))
    with pytest.raises(RunError, match=r"document 1 ends at token 3, before it begins \(4\)"):
        part.read(path, VOCAB)
    index.write_bytes(struct.pack("<4Q", 4, 6, 14, 17)[:-1])
    with pytest.raises(RunError, match=r"a\.ds\.index: 31 bytes are no whole number"):
        part.read(path, VOCAB)
    index.unlink()
    with pytest.raises(RunError, match=r"a\.ds\.index: is missing. .*'olmo'"):
        part.read(path, VOCAB)
    path = write_datatrove(tmp_path / "b.ds", ended(DOCUMENTS))
    with pytest.raises(RunError, match=r"b\.ds: id 99 at token 3, but the tokenizer has ids below 50"):
        Datatrove(unmarked=True).read(path, 50)
    with pytest.raises(ConfigError, match="eos=99, but the tokenizer has ids below 50"):
        part.read(path, 50)
    with pytest.raises(ConfigError, match="dtype=u32, but its metadata says 2 bytes"):
        Datatrove(eos=EOS, dtype="u32").read(path, VOCAB)
    (tmp_path / "b.ds.metadata").write_text("gpt2|8\n17\n")
    with pytest.raises(RunError, match="says 8 bytes per id"):
        part.read(path, VOCAB)
    (tmp_path / "b.ds.metadata").write_text("gpt2")
    with pytest.raises(RunError, match="isn't datatrove's metadata"):
        part.read(path, VOCAB)
    (tmp_path / "b.ds.loss").write_bytes(b"\1")
    with pytest.raises(RunError, match="loss mask"):
        part.read(path, VOCAB)


def test_an_empty_file_is_an_empty_list_of_documents(tmp_path: Path) -> None:
    file = Datatrove(eos=EOS, dtype="u16").read(write_datatrove(tmp_path / "a.ds", [], metadata=False), VOCAB)
    check(file, [])


WORDS = ["the cat sat", "a dog", "", "on the mat the cat <|endoftext|> sat", "dog dog dog"]


@pytest.mark.parametrize("shuffle", [False, True])
def test_what_datatrove_itself_writes(tmp_path: Path, shuffle: bool) -> None:
    pytest.importorskip("datatrove")
    import tokenizers
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    words = sorted({w for text in WORDS for w in text.split() if "<" not in w})
    vocab = {w: i for i, w in enumerate(["[UNK]", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(tmp_path / "tokenizer.json"))
    eos = made.token_to_id("<|endoftext|>")
    step = DocumentTokenizer(
        str(tmp_path / "out"),
        str(tmp_path / "tokenizer.json"),
        eos_token="<|endoftext|>",
        shuffle_documents=shuffle,
        seed=1,
    )
    step.run(iter([Document(text, str(i)) for i, text in enumerate(WORDS)]))
    [path] = Datatrove().files(tmp_path / "out")
    assert detect(tmp_path / "out") == "datatrove"
    file = Datatrove(eos=eos).read(path, made.get_vocab_size())
    expected = [made.encode(text).ids for text in WORDS if text]
    found = [file.read(i).tolist() for i in range(len(file))]
    assert sorted(found) == sorted(expected)
    assert shuffle or found == expected
    check(file, found)
    assert (file.empty, file.inner) == (1, 1)  # datatrove takes literal text of the mark for the mark
    assert file.tokenizer == str(tmp_path / "tokenizer.json")
