from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.config.errors import ConfigError
from slm.data.tokenizer import BytePairs, Bytes, FromFile, Tokenizer

TEXTS = [
    "def f(x):\n    return x + 1\n" * 20,
    "The quick brown fox — jumps 12345 times.\n" * 20,
    "ärger über Ωmega 漢字 🙂\n" * 10,
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return BytePairs(vocab=320).load(lambda: TEXTS)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_are_lossless(text: str) -> None:
    tokenizer = Bytes().load(lambda: [])
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode("utf-8")


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bpe_is_lossless(trained: Tokenizer, text: str) -> None:
    assert trained.decode_bytes(trained.encode(text)) == text.encode("utf-8")


@pytest.mark.parametrize("part", [Bytes(), BytePairs(vocab=300)])
def test_vocabulary_size_is_known_before_training(part) -> None:
    assert part.load(lambda: TEXTS).vocab_size == part.vocab_size


def test_literal_special_text_is_never_the_special_id(trained: Tokenizer) -> None:
    ids = trained.encode("a<|endoftext|>b")
    assert trained.eot_id not in ids
    assert trained.decode_bytes(ids) == b"a<|endoftext|>b"


def test_batches_equal_single_texts(trained: Tokenizer) -> None:
    assert trained.encode_batch(TEXTS) == [trained.encode(t) for t in TEXTS]


def test_token_bytes_sum_to_the_text(trained: Tokenizer) -> None:
    for text in TEXTS:
        assert trained.token_bytes[trained.encode(text)].sum() == len(text.encode())
    assert trained.token_bytes[trained.eot_id] == 0


def test_too_little_text_is_an_error_that_names_the_size() -> None:
    with pytest.raises(ConfigError, match=r"Set tokenizer\.vocab=\d+"):
        BytePairs(vocab=5000).load(lambda: ["short"])


def test_file_comes_back_and_training_is_deterministic(trained: Tokenizer, tmp_path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(trained.to_bytes())
    again = FromFile(path=str(tmp_path / "tokenizer.json")).load(lambda: [])
    assert again.encode(TEXTS[1]) == trained.encode(TEXTS[1])
    assert BytePairs(vocab=320).load(lambda: TEXTS).to_bytes() == trained.to_bytes()
    assert "<|endoftext|>" not in [again.inner.id_to_token(i) for i in again.encode("<|endoftext|>")]


def test_unreadable_files_are_named(tmp_path) -> None:
    from slm.config.errors import RunError

    with pytest.raises(ConfigError, match=r"nope\.json"):
        FromFile(path="nope.json").load(lambda: [])
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(RunError, match=r"bad\.json"):
        FromFile(path="bad.json").load(lambda: [])


def test_text_that_is_no_unicode_is_refused(trained: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="at character 1"):
        trained.encode("a\udcff")
