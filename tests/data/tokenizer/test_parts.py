"""Tokenizers that slm trains: what holds for all of them, and what each is asked for."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import NASTY, TEXTS

from slm.config.errors import ConfigError, RunError
from slm.data.tokenizer import (
    PRETOKENIZERS,
    BytePairs,
    Bytes,
    HuggingFace,
    SentencePieceBPE,
    SentencePieceUnigram,
    Tokenizer,
    interleaved,
    tokenizer,
)
from slm.data.tokenizer.byte_pairs import PretokenizerName, byte_level

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("▁ \n\t<|>'ſs1a"))
KINDS = ["bpe", "sp-bpe", "sp-unigram"]


@settings(deadline=None)
@given(TEXT)
def test_bytes_are_lossless(text: str) -> None:
    made = Bytes().load(lambda: [])
    assert made.decode_bytes(made.encode(text)) == text.encode("utf-8")


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=TEXT)
def test_every_text_comes_back_exactly(every: dict[str, Tokenizer], kind: str, text: str) -> None:
    made = every[kind]
    ids = made.encode(text)
    assert made.decode_bytes(ids) == text.encode("utf-8")
    assert made.decode(ids) == text
    assert made.token_bytes[ids].sum() == len(text.encode("utf-8"))
    assert not made.special_ids & set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_every_character_comes_back_exactly(every: dict[str, Tokenizer], kind: str) -> None:
    blocks = [
        "".join(f"{chr(c)}x {chr(c)}" for c in range(start, start + 64) if not 0xD800 <= c < 0xE000)
        for start in range(0, 0x20000, 64)
    ]
    made = every[kind]
    for text, ids in zip(blocks, made.encode_batch(blocks), strict=True):
        assert made.decode_bytes(ids) == text.encode("utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_never_made_from_text(every: dict[str, Tokenizer], kind: str) -> None:
    made = every[kind]
    for text in ("a<|endoftext|>b", "<|endoftext|>", "<|im_start|>", "<unk><|im_start|><|endoftext|>" * 3):
        ids = made.encode(text)
        assert not made.special_ids & set(ids)
        assert made.decode_bytes(ids) == text.encode()
    assert {made.eot_id} < made.special_ids
    assert made.token_bytes[list(made.special_ids)].sum() == 0
    assert made.decode_bytes([made.eot_id, *made.encode("x"), made.eot_id]) == b"x"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_batches_equal_single_texts(every: dict[str, Tokenizer], kind: str, threads: int | None) -> None:
    texts = [*TEXTS, *NASTY]
    assert every[kind].encode_batch(texts, threads) == [every[kind].encode(t) for t in texts]
    assert every[kind].encode_batch([], threads) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_the_tokenizer(every: dict[str, Tokenizer], kind: str) -> None:
    made = every[kind]
    again = Tokenizer.from_bytes(made.to_bytes())
    assert type(again) is type(made)
    assert again.to_bytes() == made.to_bytes()
    assert (again.sha256, again.eot_id, again.vocab_size) == (made.sha256, made.eot_id, made.vocab_size)
    assert again.encode_batch(NASTY) == made.encode_batch(NASTY)
    assert made.file_name == {"hf": "tokenizer.json", "sentencepiece": "tokenizer.model"}[made.kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_is_the_tokenizer_with_all_its_settings(every: dict[str, Tokenizer], kind: str) -> None:
    again = pickle.loads(pickle.dumps(every[kind]))
    assert again.encode_batch(NASTY) == every[kind].encode_batch(NASTY)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_join_and_unknown_ids_are_named(every: dict[str, Tokenizer], kind: str) -> None:
    made = every[kind]
    ids = made.encode("a 漢字 b")
    assert b"".join(made.decode_bytes([i], whole=False) for i in ids) == "a 漢字 b".encode()
    for wrong in (-1, made.vocab_size):
        with pytest.raises(RunError, match=rf"Id {wrong} .* 600 tokens"):
            made.decode_bytes([wrong])


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_is_no_unicode_is_refused(every: dict[str, Tokenizer], kind: str) -> None:
    with pytest.raises(ConfigError, match="at character 1"):
        every[kind].encode("a\udcff")
    with pytest.raises(ConfigError, match="at character 0"):
        every[kind].encode_batch(["fine", "\ud800"])


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic(every: dict[str, Tokenizer], kind: str) -> None:
    part = tokenizer.parse({"name": kind, "vocab": 600, "specials": ("<|im_start|>",)})
    assert part.load(lambda: TEXTS).to_bytes() == every[kind].to_bytes()


@pytest.mark.parametrize(
    "part",
    [Bytes(), BytePairs(vocab=300), SentencePieceBPE(vocab=500), SentencePieceUnigram(vocab=400)],
    ids=lambda p: p.part_name,
)
def test_vocabulary_size_is_known_before_training(part) -> None:
    assert part.load(lambda: TEXTS).vocab_size == part.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_too_little_text_is_an_error_that_names_the_size(kind: str) -> None:
    part = tokenizer.parse({"name": kind, "vocab": 5000})
    with pytest.raises(ConfigError, match=r"Set tokenizer\.vocab=\d+") as error:
        part.load(lambda: ["some short text of a few words"])
    size = int(str(error.value).split("tokenizer.vocab=")[2].split()[0])
    assert part.with_(vocab=size).load(lambda: ["some short text of a few words"]).vocab_size == size


def test_no_text_and_no_room_are_errors() -> None:
    with pytest.raises(ConfigError, match="no text to train"):
        SentencePieceBPE(vocab=300).load(lambda: [])
    with pytest.raises(ConfigError, match=r"no room for .* Set tokenizer\.vocab=\d+ or more"):
        SentencePieceBPE(vocab=260, character_coverage=1).load(lambda: TEXTS)
    with pytest.raises(ConfigError, match="at character 3"):
        BytePairs(vocab=300).load(lambda: ["abc\ud800"])


def test_newlines_and_indentation_become_pieces_of_sentencepiece(sp_bpe: Tokenizer, sp_unigram: Tokenizer) -> None:
    for made in (sp_bpe, sp_unigram):
        assert any(b.isspace() and len(b) > 1 for b in made.bytes_of)
        assert any(b"\n" in b and len(b) > 1 for b in made.bytes_of)
        assert not made.fallback[made.encode("\n    \n\n")].any()


@pytest.mark.parametrize("kind", KINDS)
def test_digits_are_tokens_of_their_own(every: dict[str, Tokenizer], kind: str) -> None:
    made = every[kind]
    assert all(len(b) == 1 for b in made.bytes_of if b.isdigit())
    assert [made.decode([i]) for i in made.encode("x12345")[-5:]] == list("12345")


def test_fallback_marks_pieces_of_characters(bpe: Tokenizer, sp_bpe: Tokenizer) -> None:
    for made in (bpe, sp_bpe):
        assert made.fallback[made.encode("𝄞")].all()
        assert not made.fallback[made.encode("def f")].any()
        assert made.fallback.shape == (made.vocab_size,)


def test_every_pretokenizer_is_an_option_and_keeps_special_names_apart() -> None:
    assert set(get_args(PretokenizerName)) == set(PRETOKENIZERS)
    for name in PRETOKENIZERS:
        cut = byte_level(name).pre_tokenizer.pre_tokenize_str
        assert all(len(cut(special)) > 1 for special in ("<s>", "[a]", "<|endoftext|>", "<_1>", "<||x||>", "</a/>"))
    assert len({p.patterns for p in PRETOKENIZERS.values()}) == len(PRETOKENIZERS)


DIGITS = {"one by one": list("1234567"), "up to three": ["123", "456", "7"], "whole runs": ["1234567"]}


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_pretokenizers_cut_digits_as_they_say(name: str) -> None:
    pieces = byte_level(name).pre_tokenizer.pre_tokenize_str("1234567")
    assert [piece for piece, _ in pieces] == DIGITS[PRETOKENIZERS[name].digits]


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_bpe_is_lossless_with_every_pretokenizer(name: str) -> None:
    made = BytePairs(vocab=330, pretokenizer=name).load(lambda: TEXTS)
    assert isinstance(made, HuggingFace)
    assert made.pretokenizer == name
    for text, ids in zip(NASTY, made.encode_batch(NASTY), strict=True):
        assert made.decode_bytes(ids) == text.encode()


@pytest.mark.parametrize("name", ["PAD", "<>", "< a>", "|x|", "<ä>", ""])
def test_special_names_that_text_could_be_taken_for_are_refused(name: str) -> None:
    with pytest.raises(Exception, match="could occur in text"):
        BytePairs(specials=(name,))


@pytest.mark.parametrize("names", [("<a>", "<a>"), ("<|endoftext|>",)])
def test_special_names_are_given_once(names: tuple[str, ...]) -> None:
    with pytest.raises(Exception, match="named once each"):
        SentencePieceBPE(specials=names)


def test_the_sample_obeys_its_limits() -> None:
    texts = ["ä" * 10, "b" * 100, "c" * 10, "d" * 10]
    assert list(BytePairs(sample_bytes=25, document_chars=20).sample(texts)) == ["ä" * 10, "b" * 5]
    assert list(BytePairs(sample_bytes=5).sample(texts)) == ["ä" * 2]  # no half characters
    assert list(BytePairs(stride=2).sample(texts)) == ["ä" * 10, "c" * 10]
    assert list(BytePairs(document_chars=3).sample(texts)) == ["ä" * 3, "b" * 3, "c" * 3, "d" * 3]


def test_the_sample_is_what_is_learned_from() -> None:
    texts = ["xyxyxyxy" * 40, "pqpqpqpq" * 40]
    made = BytePairs(vocab=259, stride=2).load(lambda: texts)
    assert len(made.encode("xyxy")) < 4
    assert len(made.encode("pqpq")) == 4


def test_sources_take_turns() -> None:
    assert list(interleaved([["a", "b", "c"], [], ["x"]])) == ["a", "x", "b", "c"]


def test_encoding_serially_leaves_the_environment_alone(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    bpe.encode_batch(["a"] * 8, threads=2)
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    bpe.encode("a")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_token_bytes_are_counts(bpe: Tokenizer) -> None:
    assert bpe.token_bytes.dtype == np.int64
    assert bpe.token_bytes.shape == (600,)


def test_libraries_are_loaded_when_they_are_needed() -> None:
    heavy = ("tokenizers", "sentencepiece", "tiktoken", "gigatoken", "awkward", "torch", "transformers")
    code = f"import sys, slm.data.tokenizer; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
