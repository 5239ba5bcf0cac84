"""Whether two tokenizers' files mean the same text."""

from __future__ import annotations

import json

from slm.data.tokenizer import BytePairs, Tokenizer
from slm.train.given import same_tokenizer


def learned(word: str, vocab: int = 262) -> bytes:
    return BytePairs(vocab=vocab).load(lambda: [f"{i} {word} and {word} again" for i in range(200)]).to_bytes()


def test_spacing_and_a_mark_of_what_ends_a_text_mean_nothing() -> None:
    raw = json.loads(learned("text"))
    raw["added_tokens"].append(raw["added_tokens"][0] | {"id": 262, "content": "</s>", "special": True})
    theirs = json.dumps(raw).encode()
    marked = Tokenizer.from_bytes(theirs, "</s>").to_bytes()
    assert json.loads(marked) != raw
    assert same_tokenizer(theirs, marked)
    assert same_tokenizer(theirs, json.dumps(raw, indent=4).encode())


def test_other_ids_are_other_tokenizers() -> None:
    assert not same_tokenizer(learned("text"), learned("word"))
    assert not same_tokenizer(learned("text"), b"no tokenizer")
