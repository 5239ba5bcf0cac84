from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizer_texts import TEXTS

from slm.data.tokenizer import BytePairs, FromFile, SentencePieceBPE, SentencePieceUnigram, Tokenizer


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return BytePairs(vocab=600, specials=("<|im_start|>",)).load(lambda: TEXTS)


@pytest.fixture(scope="session")
def sp_bpe() -> Tokenizer:
    return SentencePieceBPE(vocab=600, specials=("<|im_start|>",)).load(lambda: TEXTS)


@pytest.fixture(scope="session")
def sp_unigram() -> Tokenizer:
    return SentencePieceUnigram(vocab=600, specials=("<|im_start|>",)).load(lambda: TEXTS)


@pytest.fixture(scope="session")
def every(bpe: Tokenizer, sp_bpe: Tokenizer, sp_unigram: Tokenizer) -> dict[str, Tokenizer]:
    return {"bpe": bpe, "sp-bpe": sp_bpe, "sp-unigram": sp_unigram}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Tokenizer]:
    """Read bytes as the ``file`` part does."""

    def reader(raw: bytes, **fields: object) -> Tokenizer:
        (tmp_path / "some.file").write_bytes(raw)
        return FromFile(path=str(tmp_path / "some.file"), **fields).load(lambda: [])  # type: ignore[arg-type]

    return reader
