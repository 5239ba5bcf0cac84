"""Tokenizers that exist: kinds told by contents, the end-of-text token found or named, losses refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import NASTY, TEXTS

from slm.config.errors import ConfigError, RunError
from slm.data.tokenizer import BytePairs, FromFile, SentencePiece, Tokenizer
from slm.data.tokenizer.hf_file import byte_alphabet

Read = Callable[..., Tokenizer]
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("▁ \n<>s"))


def changed(made: Tokenizer, **changes: Any) -> bytes:
    """A tokenizer.json with other top-level values."""
    return json.dumps({**json.loads(made.to_bytes()), **changes}).encode()


def renamed(made: Tokenizer, names: dict[str, str]) -> bytes:
    """A tokenizer.json with other names for special tokens."""
    text = made.to_bytes().decode()
    for old, new in names.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    return text.encode()


def added(i: int, content: str, special: bool, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": content, **plain, "special": special, **flags}


# The end-of-text token.


def test_a_single_common_name_is_found(bpe: Tokenizer, read: Read) -> None:
    made = read(renamed(bpe, {"<|endoftext|>": "</s>"}))
    assert (made.eot, made.eot_id) == ("</s>", bpe.eot_id)
    assert made.special_ids == bpe.special_ids
    assert made.eot_id not in made.encode("a</s>b")


def test_slms_own_name_wins(bpe: Tokenizer, read: Read) -> None:
    assert read(renamed(bpe, {"<|im_start|>": "</s>"})).eot == "<|endoftext|>"


def test_two_common_names_have_to_be_told_apart_once(bpe: Tokenizer, read: Read) -> None:
    raw = renamed(bpe, {"<|endoftext|>": "</s>", "<|im_start|>": "<|im_end|>"})
    with pytest.raises(ConfigError, match=r"some\.file: .*</s>, <\|im_end\|>\).*tokenizer\.eot"):
        read(raw)
    made = read(raw, eot="<|im_end|>")
    assert (made.eot, made.eot_id) == ("<|im_end|>", 1)
    again = Tokenizer.from_bytes(made.to_bytes())  # as a store or checkpoint does, which knows the file alone
    assert (again.eot, again.eot_id) == ("<|im_end|>", 1)
    assert Tokenizer.from_bytes(again.to_bytes(), eot="</s>").eot_id == 0
    # Others read the file as before: nothing is put around their texts.
    plain = tokenizers.Tokenizer.from_str(made.to_bytes().decode())
    assert plain.encode("a b").ids == tokenizers.Tokenizer.from_str(raw.decode()).encode("a b").ids


def test_naming_what_the_file_says_changes_nothing(bpe: Tokenizer, sp_bpe: Tokenizer, read: Read) -> None:
    for made in (bpe, sp_bpe):
        assert read(made.to_bytes(), eot="<|endoftext|>").to_bytes() == made.to_bytes()


def test_no_known_name_is_an_error_that_lists_the_special_tokens(bpe: Tokenizer, read: Read) -> None:
    raw = renamed(bpe, {"<|endoftext|>": "<|fin|>"})
    with pytest.raises(ConfigError, match=r"no <\|endoftext\|> token.*<\|fin\|>, <\|im_start\|>"):
        read(raw)
    assert read(raw, eot="<|fin|>").eot_id == 0
    with pytest.raises(
        ConfigError, match="no token '<|fni|>'. Did you mean '<|fin|>'?".replace("|", r"\|").replace("?", r"\?")
    ):
        read(raw, eot="<|fni|>")


def test_an_ordinary_token_that_is_named_becomes_special(bpe: Tokenizer, read: Read) -> None:
    spec = json.loads(bpe.to_bytes())
    spec["added_tokens"].append(added(600, "<turn>", special=False))
    made = read(json.dumps(spec).encode(), eot="<turn>")
    assert made.eot_id == 600
    assert 600 not in made.encode("a<turn>b")
    assert Tokenizer.from_bytes(made.to_bytes()).eot_id == 600


def test_sentencepiece_keeps_the_name_in_its_own_field(sp_bpe: Tokenizer, read: Read) -> None:
    made = read(sp_bpe.to_bytes(), eot="<|im_start|>")
    assert made.eot_id == 2
    assert Tokenizer.from_bytes(made.to_bytes()).eot_id == 2
    assert sentencepiece.SentencePieceProcessor(model_proto=made.to_bytes()).eos_id() == 2
    assert made.encode_batch(NASTY) == sp_bpe.encode_batch(NASTY)


def train_sentencepiece(**settings: Any) -> bytes:
    import io

    written = io.BytesIO()
    defaults = {"model_type": "bpe", "vocab_size": 500, "byte_fallback": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(TEXTS).split("\n")), model_writer=written, **{**defaults, **settings}
    )
    return written.getvalue()


LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}  # with a dummy prefix, by default


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    return Tokenizer.from_bytes(train_sentencepiece(**LLAMA))


# SentencePiece models of others.


def test_a_model_with_dummy_prefix_gives_its_own_ids_and_the_text(llama: Tokenizer) -> None:
    plain = sentencepiece.SentencePieceProcessor(model_proto=llama.to_bytes())
    assert (llama.prefix, llama.eot, llama.loss) == (b" ", "</s>", "")
    for text in [*TEXTS, *NASTY]:
        ids = llama.encode(text)
        assert llama.decode_bytes(ids) == text.encode()
        if "▁" not in text:
            assert ids == plain.encode(text)
    assert llama.decode_bytes(llama.encode("a b"), whole=False) == b" a b"


@settings(deadline=None)
@given(text=TEXT)
def test_a_model_with_dummy_prefix_is_lossless(llama: Tokenizer, text: str) -> None:
    assert llama.decode(llama.encode(text)) == text


def test_user_defined_symbols_are_text_unless_they_end_documents(read: Read) -> None:
    raw = train_sentencepiece(**LLAMA, user_defined_symbols=["<turn>", "\n"])
    made = read(raw)
    turn = made.encode("a<turn>b")
    assert made.decode(turn) == "a<turn>b"
    assert any(made.bytes_of[i] == b"<turn>" for i in turn)
    ends = read(raw, eot="<turn>")
    assert ends.eot_id not in ends.encode("a<turn>b")
    assert ends.decode(ends.encode("a<turn>b\n\n")) == "a<turn>b\n\n"


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"remove_extra_whitespaces": False}, "normalises text"),
        ({"normalization_rule_name": "identity"}, "drops repeated spaces"),
        ({**LLAMA, "byte_fallback": False}, "has no tokens for some characters"),
    ],
)
def test_a_model_that_changes_text_is_refused_unless_asked_for(settings: dict[str, Any], loss: str, read: Read) -> None:
    raw = train_sentencepiece(**settings)
    with pytest.raises(ConfigError, match=rf"some\.file: this tokenizer {loss}.*tokenizer\.lossy=true"):
        read(raw)
    made = read(raw, lossy=True)
    assert loss in made.loss
    assert not made.lossless
    assert Tokenizer.from_bytes(raw).loss == made.loss  # a store that was made with it can be opened


def test_models_of_other_kinds_are_refused(read: Read) -> None:
    with pytest.raises(ConfigError, match="type word"):
        read(train_sentencepiece(model_type="word", byte_fallback=False, vocab_size=60))


# tokenizer.json of others.


def metaspace_json(llama: Tokenizer, **changes: Any) -> bytes:
    """A SentencePiece BPE as Hugging Face writes it."""
    assert isinstance(llama, SentencePiece)
    vocab = {piece: i for i, (piece, _) in enumerate(llama.model.pieces)}
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in vocab
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab and not piece.startswith("<")
    ]
    spec = {
        "version": "1.0",
        "added_tokens": [added(i, name, special=True) for i, name in enumerate(["<unk>", "<s>", "</s>"])],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "truncation": None,
        "padding": None,
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocab, "merges": merges},
    }  # fmt: skip
    return json.dumps({**spec, **changes}).encode()


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
GEMMA = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
}


@pytest.mark.parametrize(
    ("changes", "prefix"),
    [({}, b" "), ({"normalizer": None, "pre_tokenizer": METASPACE}, b" "), (GEMMA, b"")],
    ids=["legacy", "metaspace", "gemma"],
)
def test_sentencepiece_as_json_gives_the_librarys_ids_and_the_text(
    llama: Tokenizer, read: Read, changes: dict[str, Any], prefix: bytes
) -> None:
    raw = metaspace_json(llama, **changes)
    made = read(raw)
    assert (made.prefix, made.eot, made.loss) == (prefix, "</s>", "")
    plain = tokenizers.Tokenizer.from_str(raw.decode())
    plain.encode_special_tokens = True
    for text in [*TEXTS, *NASTY]:
        ids = made.encode(text)
        assert made.decode_bytes(ids) == text.encode()
        assert not made.special_ids & set(ids)
        if "▁" not in text and not (text.startswith(" ") and "pre_tokenizer" in changes):
            assert ids == plain.encode(text, add_special_tokens=False).ids


def test_normal_form_is_taken_and_said_but_other_normalizers_are_losses(bpe: Tokenizer, read: Read) -> None:
    made = read(changed(bpe, normalizer={"type": "NFC"}))
    assert (made.normal_form, made.loss, made.lossless) == ("NFC", "", False)
    assert made.decode(made.encode("e\u0301")) == "é"
    for normalizer in ({"type": "Lowercase"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]}):
        with pytest.raises(ConfigError, match="normalises text"):
            read(changed(bpe, normalizer=normalizer))
    assert read(changed(bpe, normalizer={"type": "Lowercase"}), lossy=True).decode(bpe.encode("A")) == "A"


@pytest.mark.parametrize(
    ("pre_tokenizer", "loss"),
    [
        ({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, "puts a space"),
        ({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}, "drops text"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}, "drops text"),
    ],
)  # fmt: skip
def test_steps_that_change_text_are_losses(
    bpe: Tokenizer, read: Read, pre_tokenizer: dict[str, Any], loss: str
) -> None:
    with pytest.raises(ConfigError, match=loss):
        read(changed(bpe, pre_tokenizer=pre_tokenizer))


def test_a_vocabulary_without_all_bytes_is_a_loss(bpe: Tokenizer, read: Read) -> None:
    spec = json.loads(bpe.to_bytes())
    del spec["model"]["vocab"][byte_alphabet()[0xC0]]  # occurs in no UTF-8
    assert read(json.dumps(spec).encode()).loss == ""
    del spec["model"]["vocab"][byte_alphabet()[0xF1]]
    with pytest.raises(ConfigError, match="no tokens for some characters"):
        read(json.dumps(spec).encode())


def test_added_tokens_that_are_not_special_are_text(bpe: Tokenizer, read: Read) -> None:
    spec = json.loads(bpe.to_bytes())
    spec["added_tokens"] += [added(600, "  ", special=False), added(601, "größe", special=False)]
    made = read(json.dumps(spec).encode())
    assert made.vocab_size == 602
    ids = made.encode("a  größe<|im_start|>")
    assert {600, 601} < set(ids)
    assert made.decode(ids) == "a  größe<|im_start|>"
    spec["added_tokens"][-1]["lstrip"] = True
    with pytest.raises(ConfigError, match="drops spaces around added tokens"):
        read(json.dumps(spec).encode())


def test_special_tokens_that_merging_would_make_are_still_not_made(bpe: Tokenizer, read: Read) -> None:
    spec = json.loads(bpe.to_bytes())
    ids = {t: i for t, i in spec["model"]["vocab"].items() if len(t) == 3 and t.isalpha() and t.isascii()}
    token, i = next(
        (t, i)
        for t, i in ids.items()
        if [t[:1], t[1:]] in spec["model"]["merges"] or [t[:2], t[2:]] in spec["model"]["merges"]
    )
    spec["added_tokens"].append(added(i, token, special=True))
    made = read(json.dumps(spec).encode())
    text = f"{token} {token}{token}x"
    assert i not in made.encode(text)
    assert made.decode(made.encode(text)) == text


def test_truncation_padding_and_dropout_are_switched_off(bpe: Tokenizer, read: Read) -> None:
    spec = json.loads(bpe.to_bytes())
    spec["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    spec["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}  # fmt: skip
    spec["model"]["dropout"] = 0.5
    made = read(json.dumps(spec).encode())
    assert made.encode_batch(TEXTS) == bpe.encode_batch(TEXTS)
    assert made.encode("") == []


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"<|endoftext|>": 0, "[UNK]": 1}},
        {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"<|endoftext|>": 0, "[UNK]": 1}},
    ],
    ids=lambda m: m["type"],
)  # fmt: skip
def test_tokens_without_bytes_are_refused(bpe: Tokenizer, read: Read, model: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{model['type']} model.*no exact bytes"):
        read(changed(bpe, model=model, pre_tokenizer={"type": "Whitespace"}, decoder=None))


def test_old_files_without_a_type_and_with_merges_as_text(bpe: Tokenizer, read: Read) -> None:
    spec = json.loads(bpe.to_bytes())
    del spec["model"]["type"]
    spec["model"]["merges"] = [" ".join(m) for m in spec["model"]["merges"]]
    assert read(json.dumps(spec).encode()).encode_batch(NASTY) == bpe.encode_batch(NASTY)


# tiktoken rank files.


def rank_file(made: Tokenizer) -> bytes:
    tokens = [b for b in made.bytes_of if b]
    return b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens))


def test_a_rank_file_encodes_as_tiktoken_does(bpe: Tokenizer, read: Read) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    raw = rank_file(bpe)
    made = read(raw, pretokenizer="qwen2", special_tokens={"<|endoftext|>": 700, "<|x|>": 701})
    assert (made.eot_id, made.vocab_size, made.file_name) == (700, 702, "tokenizer.json")
    ranks = {base64.b64decode(t): int(i) for t, i in (line.split() for line in raw.splitlines())}
    [pattern] = [json.loads(made.to_bytes())["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]]
    theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for text in [*TEXTS, *NASTY]:
        assert made.encode(text) == theirs.encode_ordinary(text)
        assert made.decode(made.encode(text)) == text


def test_a_rank_file_by_default_gets_the_first_free_id(bpe: Tokenizer, read: Read) -> None:
    raw = rank_file(bpe)
    last = raw.splitlines()[-1].split()[1]
    assert read(raw, pattern=r"\s+|\S+").eot_id == int(last) + 1
    holed = raw.replace(b" " + last + b"\n", b" 900\n")
    assert read(holed, pattern=r"\s+|\S+").eot_id == int(last)


def test_a_rank_file_that_says_too_little_or_nonsense(bpe: Tokenizer, read: Read) -> None:
    raw = rank_file(bpe)
    with pytest.raises(ConfigError, match=r"tokenizer\.pretokenizer to one of qwen2"):
        read(raw)
    with pytest.raises(ConfigError, match="id of '<|endoftext|>' belongs".replace("|", r"\|")):
        read(raw, pretokenizer="qwen2", special_tokens={"<|endoftext|>": 5})
    with pytest.raises(RunError, match="line 3 is not a base64 token"):
        read(b"\n".join([*raw.splitlines()[:2], b"%%% x"]), pretokenizer="qwen2")
    with pytest.raises(RunError, match="lacks the byte 0x"):
        read(b"\n".join(raw.splitlines()[:100]), pretokenizer="qwen2")
    with pytest.raises(RunError, match="line 2 repeats"):
        read(b"YQ== 0\nYQ== 1\n", pretokenizer="qwen2")
    with pytest.raises(RunError, match="same rank"):
        read(b"YQ== 0\nYg== 0\n", pretokenizer="qwen2")


def test_what_only_rank_files_need_is_refused_elsewhere(bpe: Tokenizer, read: Read) -> None:
    with pytest.raises(ConfigError, match=r"not a \.tiktoken file"):
        read(bpe.to_bytes(), pretokenizer="gpt2")
    with pytest.raises(Exception, match="give one of them"):
        FromFile(path="x", pretokenizer="gpt2", pattern=".")


# The files themselves.


def test_file_comes_back(bpe: Tokenizer, read: Read) -> None:
    assert read(bpe.to_bytes()).encode(TEXTS[1]) == bpe.encode(TEXTS[1])
    assert read(bpe.to_bytes()).to_bytes() == bpe.to_bytes()


def test_a_directory_stands_for_its_tokenizer(bpe: Tokenizer, sp_bpe: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(ConfigError, match=r"has none of tokenizer\.json"):
        FromFile(path=str(tmp_path / "d")).load(lambda: [])
    (tmp_path / "d" / "tokenizer.model").write_bytes(sp_bpe.to_bytes())
    assert FromFile(path=str(tmp_path / "d")).load(lambda: []).kind == "sentencepiece"
    (tmp_path / "d" / "tokenizer.json").write_bytes(bpe.to_bytes())
    assert FromFile(path=str(tmp_path / "d")).vocab_size == 600


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"model": 1}', b"\n\x05hello", b"hello world", b"\x00\xff", b'{"model": {"type": "BPE"'])  # fmt: skip
def test_what_is_no_tokenizer_is_named(raw: bytes, read: Read) -> None:
    with pytest.raises((ConfigError, RunError), match=r"some\.file"):
        read(raw)


def test_damaged_models_are_named(sp_bpe: Tokenizer, bpe: Tokenizer, read: Read) -> None:
    for made in (sp_bpe, bpe):
        for cut in (1, 100, len(made.to_bytes()) // 2, len(made.to_bytes()) - 1):
            with pytest.raises((ConfigError, RunError), match=r"some\.file"):
                read(made.to_bytes()[:cut])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nope\.json"):
        FromFile(path="nope.json").load(lambda: [])


def test_a_trained_file_is_read_elsewhere(bpe: Tokenizer, sp_unigram: Tokenizer) -> None:
    plain = tokenizers.Tokenizer.from_str(bpe.to_bytes().decode())
    assert plain.decode(bpe.encode("a b\n"), skip_special_tokens=True) == "a b\n"
    processor = sentencepiece.SentencePieceProcessor(model_proto=sp_unigram.to_bytes())
    assert processor.encode("a b\n") == sp_unigram.encode("a b\n")
    assert processor.decode(sp_unigram.encode("a b\n")) == "a b\n"


def test_sizes_with_gaps_count_the_largest_id(read: Read) -> None:
    spec = json.loads(BytePairs(vocab=300).load(lambda: TEXTS).to_bytes())
    spec["added_tokens"].append(added(300, "<|pad|>", special=True))
    assert read(json.dumps(spec).encode()).vocab_size == 301
