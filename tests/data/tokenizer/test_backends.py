"""Fast backends give the tokenizer's own ids, on everything, or are refused."""

from __future__ import annotations

import builtins
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import NASTY, TEXTS

from slm.config.errors import ConfigError, RunError
from slm.data.tokenizer import (
    PRETOKENIZERS,
    BytePairs,
    Encoder,
    Tokenizer,
    Verified,
    backend,
    why_not,
)
from slm.data.tokenizer.backends import FAST
from slm.data.tokenizer.byte_pairs import byte_level
from slm.data.tokenizer.fast import has_unassigned
from slm.data.tokenizer.hf import HuggingFace
from slm.data.tokenizer.hf_file import byte_alphabet
from slm.data.tokenizer.with_tiktoken import RARE_SPACES, Tiktoken, has_wide_space

Read = Callable[..., Tokenizer]
TEXT = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \r\n\t'sſKtdmreveLL1²٣aAéÉǅ_/-.́﷽▁<|>")),
    max_size=5,
)
RARE = "\u0378\u088f\ua7ce\u1c89\U0001fae9\U00016d40\U000323b0\U0003347f\U000e0080"
"""Unassigned, or assigned by Unicode 15 to 17: libraries don't agree on what these are."""


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {name: BytePairs(vocab=500, pretokenizer=name).load(lambda: TEXTS) for name in PRETOKENIZERS}


@lru_cache(maxsize=16)
def sharp(name: str) -> Tokenizer:
    """A tokenizer that shows where text is cut: bytes of different kinds are one token wherever they aren't cut apart."""
    spec = json.loads(byte_level(name).to_str())
    chars, vocab = byte_alphabet(), spec["model"]["vocab"]
    left = [(a, b) for a in b"aA1! \n'." for b in [*range(0x80), *range(0xC2, 0xF5)]]
    right = [(a, b) for a in range(0x80, 0xC0) for b in b"aA1!s \n"]
    for a, b in left + right:
        vocab[chars[a] + chars[b]] = len(vocab)
        spec["model"]["merges"].append([chars[a], chars[b]])
    return Tokenizer.from_bytes(json.dumps(spec).encode())


encoder_of = lru_cache(maxsize=64)(backend)
"""Making one takes longer than most texts."""


def supported(tokenizer: Tokenizer) -> list[str]:
    return [name for name in FAST if not why_not(tokenizer, name)]


def same(tokenizer: Tokenizer, texts: Sequence[str], threads: int = 1) -> None:
    expected = tokenizer.encode_batch(texts, threads=1)
    for name in supported(tokenizer):
        encoded = encoder_of(tokenizer, name, threads).encode_batch(texts)
        assert len(encoded) == len(texts)
        for text, got, wanted in zip(texts, encoded, expected, strict=True):
            assert got.dtype == np.uint32
            assert list(got) == wanted, (name, text)


@lru_cache
def composing() -> Tokenizer:
    spec = {**json.loads(sharp("qwen2").to_bytes()), "normalizer": {"type": "NFC"}}
    return Tokenizer.from_bytes(json.dumps(spec).encode())


def around(points: Sequence[int]) -> str:
    """Characters beside others of every kind, so that another cut is another token."""
    chars = [chr(c) for c in points if not 0xD800 <= c < 0xE000]
    return "".join(f"a{c}a A{c}A 1{c}1!{c}!\n{c}\n'{c}s {c}.{c}{c} " for c in chars)


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_same_ids_on_nasty_text(trained: dict[str, Tokenizer], name: str) -> None:
    for package in FAST:
        pytest.importorskip(package)
    expected = {"smollm": [], "deepseek-v3": ["gigatoken"]}.get(name, ["gigatoken", "tiktoken"])
    assert supported(trained[name]) == expected
    same(trained[name], [*TEXTS, *NASTY, RARE, *RARE])
    same(sharp(name), [*TEXTS, *NASTY, *(around([ord(c)]) for c in RARE)])


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "gpt4o", "deepseek-v3"])
def test_same_ids_on_characters_of_all_planes(name: str) -> None:
    rng = random.Random(name)
    dense = [*range(0x3100), *range(0xA4D0, 0xAC80), *range(0xF900, 0x10000)]
    points = [*rng.sample(dense, 2000), *(rng.randrange(0x10000, 0x34000) for _ in range(1000))]
    same(sharp(name), [around([c]) for c in points])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "gpt4o", "deepseek-v3"])
def test_same_ids_on_every_character(name: str) -> None:
    same(sharp(name), [around([c]) for c in [*range(0x34000), *range(0xE0000, 0xE0200)]])


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "llama3", "qwen35", "gpt4o", "deepseek-v3"])
@settings(deadline=None)
@given(texts=TEXT)
def test_same_ids_on_any_text(name: str, texts: list[str]) -> None:
    same(sharp(name), texts)


@pytest.mark.parametrize("name", ["qwen2", "llama3", "qwen35", "gpt4o"])
@settings(deadline=None)
@given(
    words=st.lists(
        st.tuples(
            st.sampled_from(["a", "A1", "!", "'s", "é٣", "ǅ./", "1234", ""]),
            st.sampled_from([" ", "\n", "\r\n", " \n", "\n ", "\n\n", "\r", ""]),
        )
    )
)
def test_same_ids_without_looking_ahead(name: str, words: list[tuple[str, str]]) -> None:
    pytest.importorskip("tiktoken")
    text = "".join(word + space for word, space in words)
    encoder = encoder_of(sharp(name), "tiktoken")
    assert isinstance(encoder, Tiktoken)
    if not has_wide_space(text):
        assert encoder.simple.encode_ordinary(text) == sharp(name).encode(text)


def test_white_space_side_by_side_needs_to_look_ahead() -> None:
    pytest.importorskip("tiktoken")
    spaces = [chr(c) for c in range(0x110000) if chr(c).isspace() and not 0x1C <= c <= 0x1F]  # Unicode's White_Space
    assert {c for c in spaces if c not in " \r\n"} == set("".join(RARE_SPACES))
    assert all(has_wide_space(f"a{c}b") for c in spaces if c not in " \r\n")
    encoder = encoder_of(sharp("qwen2"), "tiktoken")
    assert isinstance(encoder, Tiktoken)
    assert encoder.simple.encode_ordinary("a  b") != sharp("qwen2").encode("a  b")
    assert encoder_of(sharp("gpt2"), "tiktoken").simple is None  # type: ignore[attr-defined]


@settings(deadline=None)
@given(texts=TEXT)
def test_same_ids_of_sentencepiece_on_any_text(sp_bpe: Tokenizer, texts: list[str]) -> None:
    same(sp_bpe, texts)


def test_same_ids_of_sentencepiece_on_nasty_text(sp_bpe: Tokenizer, sp_unigram: Tokenizer) -> None:
    pytest.importorskip("gigatoken")
    assert supported(sp_bpe) == ["gigatoken"]
    same(sp_bpe, [*TEXTS, *NASTY, RARE])
    assert "unigram" in why_not(sp_unigram, "gigatoken")
    assert why_not(sp_unigram, "tiktoken") == "it isn't byte-level BPE"


def test_same_ids_on_lines_of_a_megabyte(bpe: Tokenizer) -> None:
    size = 200_000
    same(
        bpe,
        [
            "x" + " " * 5 * size + "x",
            "a" * size,
            "1" * size,
            " " * size,
            "\n" * size,
            "^" * size,
            "漢" * (size // 3),
            "ab c1 " * (size // 6),
        ],
    )


@pytest.mark.parametrize("kind", ["bpe", "sp-bpe", "sp-unigram"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(every: dict[str, Tokenizer], kind: str, threads: int) -> None:
    texts = [*TEXTS, *NASTY, RARE] * 3
    same(every[kind], texts, threads)
    expected = every[kind].encode_batch(texts)
    assert [list(ids) for ids in backend(every[kind], every[kind].kind, threads).encode_batch(texts)] == expected


@pytest.mark.parametrize("kind", ["bpe", "sp-bpe"])
def test_one_thread_is_one_thread(every: dict[str, Tokenizer], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, running, most = TEXTS * 20, [0], [0]
    for owner, method in ((HuggingFace, "_ids"), *((fast, "_fast") for fast in FAST.values())):
        run = getattr(owner, method)

        def noted(self: Any, texts: Sequence[str], run: Callable[..., Any] = run) -> Any:
            running[0] += 1
            most[0] = max(most[0], running[0])
            time.sleep(0.001)  # whoever else there is has time to come
            try:
                return run(self, texts)
            finally:
                running[0] -= 1

        monkeypatch.setattr(owner, method, noted)
    for name in ["auto", every[kind].kind, *supported(every[kind])]:
        encoder = backend(every[kind], name)
        encoder.encode_batch(texts[:2])
        before = threads_now()
        encoder.encode_batch(texts)
        assert threads_now() == before, "a library keeps threads of its own"
        assert most[0] <= 1


def threads_now() -> int:
    """Threads of this process; one that was joined a moment ago may not be gone yet."""
    counts = []
    for _ in range(10):
        counts.append(len(os.listdir("/proc/self/task")))
        time.sleep(0.005)
    return min(counts)


@pytest.mark.parametrize("kind", ["bpe", "sp-bpe"])
def test_specials_broken_text_and_nothing(every: dict[str, Tokenizer], kind: str) -> None:
    for name in supported(every[kind]):
        encoder = backend(every[kind], name)
        [ids] = encoder.encode_batch(["a<|endoftext|><|im_start|><unk>b"])
        assert not every[kind].special_ids & set(ids.tolist())
        assert ids.max() < every[kind].vocab_size
        assert encoder.encode_batch([]) == []
        assert [len(ids) for ids in encoder.encode_batch(["", "", ""])] == [0, 0, 0]
        with pytest.raises(ConfigError, match="at character 1"):
            encoder.encode_batch(["fine", "a\udc80"])


def test_added_tokens_and_normal_forms(bpe: Tokenizer, read: Read) -> None:
    spec = json.loads(bpe.to_bytes())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    spec["added_tokens"] += [{"id": 600 + i, "content": c, "normalized": bool(i), **flags} for i, c in enumerate(("<tool>", "<tool>>"))]  # fmt: skip
    spec["normalizer"] = {"type": "NFC"}
    made = read(json.dumps(spec).encode())
    assert supported(made) == [n for n in FAST if n in supported(bpe)]
    same(made, ["a<tool>b <tool>\u0338 <tool>>", "e\u0301e\u0301 \u1100\u1161", *NASTY, *TEXTS])


@settings(max_examples=50, deadline=None)
@given(texts=TEXT)
def test_same_ids_with_a_normal_form(texts: list[str]) -> None:
    same(composing(), texts)


def test_unassigned_characters_are_those_of_no_version() -> None:
    assert has_unassigned("a\u0378")
    assert has_unassigned("\U0003ffff")
    assert has_unassigned("\U0008abcd")
    assert not has_unassigned("plain é 漢 🙂 \ue000 \U000f0000 \U0010fffd")
    assert not has_unassigned("")


# Choosing.


def test_auto_takes_the_fastest_that_is_installed(bpe: Tokenizer, sp_unigram: Tokenizer, monkeypatch) -> None:
    for package in FAST:
        pytest.importorskip(package)
    assert backend(bpe).name == "gigatoken"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gigatoken" else builtins.object())
    assert backend(bpe).name == "tiktoken"
    with pytest.raises(ConfigError, match=r"'gigatoken' can't encode .* isn't installed \(pip install 'slm\[fast\]'\)"):
        backend(bpe, "gigatoken")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert backend(bpe).name == "hf"
    assert backend(sp_unigram).name == "sentencepiece"


def test_what_a_backend_cannot_do_is_said(trained: dict[str, Tokenizer], bpe: Tokenizer, sp_bpe: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="gigatoken's list"):
        backend(trained["smollm"], "gigatoken")
    with pytest.raises(ConfigError, match="several patterns in turn"):
        backend(trained["deepseek-v3"], "tiktoken")
    with pytest.raises(ConfigError, match="read by sentencepiece, not by hf"):
        backend(sp_bpe, "hf")
    with pytest.raises(ConfigError, match="read by hf, not by sentencepiece"):
        backend(bpe, "sentencepiece")
    with pytest.raises(ConfigError, match="Did you mean 'tiktoken'"):
        backend(bpe, "tiktokens")
    with pytest.raises(ConfigError, match="threads=0"):
        backend(bpe, threads=0)


def damaged(made: Tokenizer, change: Callable[[dict[str, Any]], None]) -> Tokenizer:
    spec = json.loads(made.to_bytes())
    change(spec)
    return Tokenizer.from_bytes(json.dumps(spec).encode())


def test_tiktoken_is_refused_where_ranks_are_not_merges(bpe: Tokenizer) -> None:
    pytest.importorskip("tiktoken")

    def swap_merges(spec: dict[str, Any]) -> None:
        merges = spec["model"]["merges"]
        merges[0], merges[1] = merges[1], merges[0]

    def drop_a_merge(spec: dict[str, Any]) -> None:
        spec["model"]["merges"].pop(3)

    def other_pattern(spec: dict[str, Any]) -> None:
        spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x"

    def other_behavior(spec: dict[str, Any]) -> None:
        spec["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext"

    for change, reason in (
        (swap_merges, "order of their ids"),
        (drop_a_merge, "order of their ids"),
        (other_pattern, "doesn't know by name"),
        (other_behavior, "other means than patterns"),
    ):
        assert reason in why_not(damaged(bpe, change), "tiktoken")
    for change in (other_pattern, other_behavior):
        assert why_not(damaged(bpe, change), "gigatoken")


def test_special_tokens_among_the_models_need_no_bytes(bpe: Tokenizer) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["model"]["vocab"]["<|x y｜>"] = len(spec["model"]["vocab"]) + 5
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        spec["added_tokens"].append(
            {"id": spec["model"]["vocab"]["<|x y｜>"], "content": "<|x y｜>", "special": True, **flags}
        )

    same(damaged(bpe, change), TEXTS)
    assert "tiktoken" in supported(damaged(bpe, change))


def test_a_bare_byte_level_step_is_gpt2(trained: dict[str, Tokenizer]) -> None:
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    made = damaged(trained["gpt2"], lambda spec: spec.update(pre_tokenizer=step))
    assert supported(made) == supported(trained["gpt2"])
    same(made, [*TEXTS, *NASTY])
    assert made.encode_batch(NASTY) == trained["gpt2"].encode_batch(NASTY)


def test_rank_files_keep_their_backends(read: Read, bpe: Tokenizer) -> None:
    import base64

    tokens = [b for b in bpe.bytes_of if b]
    raw = b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens))
    made = read(raw, pretokenizer="qwen2")
    assert supported(made) == supported(bpe)
    same(made, [*TEXTS, *NASTY])


# Verifying.


class Wrong(Encoder):
    """Gives another id at one place."""

    name = "wrong"

    def __init__(self, tokenizer: Tokenizer, document: int, drop: bool = False) -> None:
        self.tokenizer, self.threads, self.document, self.drop, self.count = tokenizer, 1, document, drop, 0

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        out = [np.array(ids, dtype=np.uint32) for ids in self.tokenizer.encode_batch(texts)]
        at = self.document - self.count
        if 0 <= at < len(out):
            out[at] = out[at][:-1] if self.drop else np.concatenate([out[at][:2], [70], out[at][3:]]).astype(np.uint32)
        self.count += len(texts)
        return out


def test_a_mismatch_names_file_document_place_and_ids(bpe: Tokenizer) -> None:
    verified = Verified(Wrong(bpe, document=5))
    verified.start("some.parquet")
    assert len(verified.encode_batch(TEXTS[:4])) == 4
    wanted = bpe.encode(TEXTS[1])[2]
    with pytest.raises(RunError, match=rf"Document number 6 of some\.parquet: at token 2 the wrong backend gives 70 \(.*itself {wanted} \("):  # fmt: skip
        verified.encode_batch([TEXTS[0], TEXTS[1]])
    with pytest.raises(RunError, match=r"Document uuid-1: at token \d+ the wrong backend gives no more tokens"):
        Verified(Wrong(bpe, document=1, drop=True)).encode_batch(TEXTS[:2], names=["uuid-0", "uuid-1"])


def test_only_the_first_documents_of_every_file_are_verified(bpe: Tokenizer) -> None:
    verified = Verified(Wrong(bpe, document=3), documents=3)
    verified.start("a")
    verified.encode_batch(TEXTS)  # the fourth document is wrong, and not looked at
    verified = Verified(Wrong(bpe, document=3), documents=3)
    verified.start("a")
    verified.encode_batch(TEXTS[:3])
    verified.start("b")
    with pytest.raises(RunError, match="number 1 of b"):
        verified.encode_batch(TEXTS)


def test_of_a_small_file_a_two_hundredth_is_verified_but_always_some_documents(bpe: Tokenizer) -> None:
    texts = ["abc " * 25] * 40

    def passes(wrong: int, size: int | None) -> bool:
        verified = Verified(Wrong(bpe, document=wrong))
        verified.start("a", size)
        try:
            verified.encode_batch(texts[:7])
            verified.encode_batch(texts[7:])
        except RunError:
            return False
        return True

    assert not passes(15, 4000)  # the last of 16
    assert passes(16, 4000)
    assert not passes(29, 600_000)  # a two-hundredth are 30 documents of 100 characters
    assert passes(30, 600_000)
    assert not passes(39, None)


def test_the_tokenizers_own_library_is_not_verified_against_itself(bpe: Tokenizer, monkeypatch) -> None:
    calls = []
    encode = type(bpe)._encode
    monkeypatch.setattr(
        type(bpe), "_encode", lambda self, texts, threads: calls.append(1) or encode(self, texts, threads)
    )
    Verified(backend(bpe, "hf")).encode_batch(TEXTS)
    assert len(calls) == 1
    assert Verified(backend(bpe)).encode_batch(TEXTS)[0].tolist() == bpe.encode(TEXTS[0])
