"""Figures about a tokenizer, on texts small enough to count by hand."""

from __future__ import annotations

import pytest
from tokenizer_texts import TEXTS

from slm.data.tokenizer import BytePairs, Bytes, Tokenizer
from slm.data.tokenizer.report import report, vocabulary_share


def test_figures_can_be_counted_by_hand() -> None:
    made = Bytes().load(lambda: [])
    found = report(made, {"ab": lambda: ["a b", "ä\n"], "none": lambda: []})
    first, none = found["sources"]
    assert first == {
        "source": "ab",
        "documents": 2,
        "bytes": 6,
        "tokens": 6,
        "bytes_per_token": 1.0,
        "tokens_per_word": 2.0,
        "fallback_share": 2 / 6,
    }
    assert none["tokens"] == none["bytes_per_token"] == 0
    assert found["unused_share"] == (256 - 6) / 256
    assert found["digits"] == {"longest": 1, "example": list("1234567")}
    assert found["round_trip"] == {"texts": 200, "passed": 200}
    assert (found["vocab_size"], found["special_tokens"], found["loss"]) == (257, 1, "")


def test_longest_tokens_and_digits_are_the_vocabularys(bpe: Tokenizer) -> None:
    found = report(bpe, {"texts": lambda: TEXTS})
    longest = max(len(b) for b in bpe.bytes_of if b.strip())
    assert len(found["longest_tokens"][0].encode()) == longest
    assert all(t.strip() for t in found["longest_tokens"])
    together = BytePairs(vocab=270, pretokenizer="gpt2").load(lambda: ["1234567 " * 50, "some other words here"])
    assert report(together, {})["digits"] == {"longest": 7, "example": ["1234567"]}


def test_only_the_sample_is_measured(bpe: Tokenizer) -> None:
    def texts():
        yield "a" * 60
        yield "b" * 60
        raise AssertionError("read past the sample")

    assert report(bpe, {"s": texts}, sample_bytes=100)["sources"][0]["documents"] == 2


def test_unused_tokens_are_counted_over_all_sources(sp_bpe: Tokenizer) -> None:
    one = report(sp_bpe, {"a": lambda: TEXTS[:1]})["unused_share"]
    both = report(sp_bpe, {"a": lambda: TEXTS[:1], "b": lambda: TEXTS[1:]})["unused_share"]
    assert both < one


def test_losses_show(sp_bpe: Tokenizer, bpe: Tokenizer) -> None:
    import json

    lower = Tokenizer.from_bytes(
        json.dumps({**json.loads(bpe.to_bytes()), "normalizer": {"type": "Lowercase"}}).encode()
    )
    found = report(lower, {})
    assert found["loss"] == "normalises text (Lowercase)"
    assert found["round_trip"]["passed"] < 200
    nfc = Tokenizer.from_bytes(json.dumps({**json.loads(bpe.to_bytes()), "normalizer": {"type": "NFC"}}).encode())
    assert report(nfc, {})["loss"] == "brings text into NFC"
    assert report(sp_bpe, {})["round_trip"]["passed"] == 200


@pytest.mark.parametrize(("vocab", "share"), [(32768, 0.15), (49152, 0.21)])
def test_share_of_a_model_with_tied_embeddings(vocab: int, share: float) -> None:
    params = {"embedding": vocab * 576, "head": 0, "unique": vocab * 576 + 106_203_456}
    assert vocabulary_share(params) == pytest.approx(share, abs=0.005)
