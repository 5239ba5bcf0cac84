"""What a tokenizer is worth on given text: figures to choose one by, before a model is trained on it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm.data.tokenizer.backends import backend
from slm.data.tokenizer.base import Tokenizer
from slm.data.tokenizer.encoder import Encoder

SAMPLE_BYTES = 20_000_000
"""Of every source, unless told otherwise."""
BATCH = 256
LONGEST = 8
"""So many of the longest tokens are named."""
PROBES = 200
"""Random texts that have to come back."""


@dataclass
class Figures:
    """Counts over the documents of one source."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    words: int = 0
    """Runs of anything but white space."""
    fallback: int = 0
    """Tokens that are a piece of a character, see `Tokenizer.fallback`."""

    def to_json(self) -> dict[str, Any]:
        """The counts, and what they say: bytes per token, tokens per word, share of pieces of characters."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": self.bytes / max(1, self.tokens),
            "tokens_per_word": self.tokens / max(1, self.words),
            "fallback_share": self.fallback / max(1, self.tokens),
        }


def report(
    tokenizer: Tokenizer, sources: Mapping[str, Callable[[], Iterable[str]]], sample_bytes: int = SAMPLE_BYTES
) -> dict[str, Any]:
    """A tokenizer's figures on samples of sources (their texts, by the source's name), as plain data.

    ``unused_share``: tokens, special ones apart, that no sample has. It shrinks as samples grow; compare it between
    tokenizers on the same samples.
    """
    encoder = backend(tokenizer)
    used = np.zeros(tokenizer.vocab_size, dtype=bool)
    measured = {name: _measure(encoder, _cut(texts(), sample_bytes), used) for name, texts in sources.items()}
    ordinary = np.ones(tokenizer.vocab_size, dtype=bool)
    ordinary[list(tokenizer.special_ids)] = False
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "eot": tokenizer.eot,
        "pretokenizer": getattr(tokenizer, "pretokenizer", None),
        "sha256": tokenizer.sha256,
        "special_tokens": len(tokenizer.special_ids),
        "loss": tokenizer.loss or (tokenizer.normal_form and f"brings text into {tokenizer.normal_form}"),
        "digits": _digits(tokenizer),
        "longest_tokens": _longest(tokenizer),
        "unused_share": float((ordinary & ~used).sum() / max(1, ordinary.sum())),
        "round_trip": _round_trip(tokenizer),
        "sources": [{"source": name, **figures.to_json()} for name, figures in measured.items()],
    }


def vocabulary_share(params: Mapping[str, int]) -> float:
    """Share of a model's parameters that its vocabulary takes: input and output embedding of all that are stored."""
    return (params["embedding"] + params["head"]) / params["unique"]


def _measure(encoder: Encoder, texts: Iterator[str], used: np.ndarray) -> Figures:
    """Encode texts and count; marks in ``used``, bool of shape (vocab,), the tokens that occur."""
    figures, fallback = Figures(), encoder.tokenizer.fallback
    while batch := [text for text, _ in zip(texts, range(BATCH), strict=False)]:
        for text, ids in zip(batch, encoder.encode_batch(batch), strict=True):
            used[ids] = True
            figures.documents += 1
            figures.bytes += len(text.encode("utf-8"))
            figures.tokens += len(ids)
            figures.words += len(text.split())
            figures.fallback += int(fallback[ids].sum())
    return figures


def _cut(texts: Iterable[str], size: int) -> Iterator[str]:
    """Whole texts until they make up ``size`` bytes."""
    for text in texts:
        yield text
        size -= len(text.encode("utf-8"))
        if size <= 0:
            return


def _digits(tokenizer: Tokenizer) -> dict[str, Any]:
    """How numbers are cut: the longest token of digits alone, and what becomes of an example."""
    runs = [len(b) for b in tokenizer.bytes_of if b.isdigit()]
    pieces = [tokenizer.decode([i], whole=False) for i in tokenizer.encode("1234567")]
    return {"longest": max(runs, default=0), "example": pieces}


def _longest(tokenizer: Tokenizer) -> list[str]:
    """The longest tokens that are not white space alone."""
    table = [b for b in tokenizer.bytes_of if b.strip()]
    return [b.decode("utf-8", errors="replace") for b in sorted(table, key=lambda b: (-len(b), b))[:LONGEST]]


def _round_trip(tokenizer: Tokenizer) -> dict[str, int]:
    """How many random texts come back: half of them characters of all planes, half of them random bytes."""
    rng = random.Random(0)
    texts = []
    for number in range(PROBES):
        if number % 2:
            texts.append(rng.randbytes(64).decode("latin-1"))
        else:
            points = (rng.choice((0x80, 0x800, 0x3000, 0x110000)) for _ in range(64))
            chars = (chr(rng.randrange(limit)) for limit in points)
            texts.append("".join(c for c in chars if not "\ud800" <= c <= "\udfff"))
    ids = tokenizer.encode_batch(texts, threads=1)
    passed = sum(tokenizer.decode_bytes(i) == text.encode("utf-8") for i, text in zip(ids, texts, strict=True))
    return {"texts": len(texts), "passed": passed}
