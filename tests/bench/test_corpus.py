"""What is measured on is real: stores verify, text has its size, lengths their mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slm.bench.corpus import Lengths, Work, log_normal
from slm.config.errors import RunError
from slm.data.tokenizer import Tokenizer, why_not


def test_the_text_is_json_lines_of_the_size_asked_for(tmp_path: Path) -> None:
    folder = Work(tmp_path, 1, 1).text()
    files = sorted(folder.iterdir())
    texts = [json.loads(line)["text"] for file in files for line in file.read_text().splitlines()]
    assert len(files) == 4
    assert 1e6 <= sum(len(text.encode()) for text in texts) < 1.5e6
    assert [file.name for file in tmp_path.iterdir()] == [folder.name]


def test_the_tokenizer_is_one_that_fast_backends_take(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_bytes(Work(tmp_path, 1, 1).tokenizer().read_bytes())
    assert tokenizer.vocab_size == 4096
    assert all(
        not (reason := why_not(tokenizer, name)) or "isn't installed" in reason for name in ("tiktoken", "gigatoken")
    )


def test_a_made_store_is_checked_like_any_other(tmp_path: Path) -> None:
    made = Work(tmp_path, 1, 1).token_store(0.5)
    split = made.open()
    assert split.tokens == split.lengths().sum()
    split.shards[0].verify()
    path = split.shards[0].path(".tok")
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(RunError, match="checksum"):
        made.open().take(0, 1000)


def test_lengths_are_log_normal_with_the_mean() -> None:
    lengths = log_normal(200_000)
    assert lengths.min() >= 1
    assert lengths.mean() == pytest.approx(1000, rel=0.02)
    documents = Lengths(lengths)
    assert np.array_equal(documents.offsets(5, 9), np.cumsum(lengths)[4:8])
    assert len(documents.take(123, 77)) == 77
