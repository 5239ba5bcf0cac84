"""Encoding at scale: text in, arrays of ids out, by whichever library is fastest and gives the same ids."""

from __future__ import annotations

import abc
import math
from array import array
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from slm.config.errors import RunError
from slm.data.tokenizer.base import Tokenizer


class Encoder(abc.ABC):
    """Encodes documents in batches. Not to be shared by processes: make one in each."""

    name: str
    tokenizer: Tokenizer
    threads: int

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of every text, uint32 of shape (tokens,), not to be written to. Raises `ConfigError` for text that isn't valid Unicode."""


def as_array(ids: list[int]) -> np.ndarray:
    """Ids as uint32; `array` reads a list three times as fast as numpy does."""
    return np.frombuffer(array("I", ids), dtype=np.uint32) if ids else np.empty(0, dtype=np.uint32)


class Native(Encoder):
    """The tokenizer's own library: every other backend must give its ids."""

    def __init__(self, tokenizer: Tokenizer, threads: int = 1) -> None:
        self.name, self.tokenizer, self.threads = tokenizer.kind, tokenizer, threads

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [as_array(ids) for ids in self.tokenizer.encode_batch(texts, self.threads)]


class Verified(Encoder):
    """Another encoder that is held against the tokenizer itself on the first documents of every file.

    Call `start` before a file's documents. A mismatch is a `RunError`: two libraries that disagree, if only on one
    document, make a store whose tokens the model's users won't reproduce. The tokenizer is so much slower that in a small
    file 256 documents would take longer than all the rest: of a file whose size is known it checks no more than a
    two-hundredth, but always 16 documents.
    """

    DOCUMENTS: ClassVar[int] = 256
    LEAST: ClassVar[int] = 16
    SHARE: ClassVar[float] = 0.005

    def __init__(self, encoder: Encoder, documents: int = DOCUMENTS) -> None:
        self.encoder, self.documents = encoder, documents
        self.name, self.tokenizer, self.threads = encoder.name, encoder.tokenizer, encoder.threads
        self.start("")

    def start(self, file: str, size: int | None = None) -> None:
        """From here on, documents are those of ``file`` (a name for messages) of ``size`` bytes, if that is known."""
        self.file, self.seen = file, 0
        self._left = math.inf if size is None else size * self.SHARE

    def encode_batch(self, texts: Sequence[str], names: Sequence[str] | None = None) -> list[np.ndarray]:
        """As `Encoder.encode_batch`; ``names`` of the documents, for messages."""
        encoded = self.encoder.encode_batch(texts)
        if isinstance(self.encoder, Native):
            return encoded
        check = self._to_check(texts)
        expected = self.tokenizer.encode_batch(texts[:check], self.threads) if check else []
        for i, (got, wanted) in enumerate(zip(encoded, expected, strict=False)):
            if not np.array_equal(got, as_array(wanted)):
                where = names[i] if names else f"number {self.seen + i + 1}"
                raise RunError(_mismatch(self, where, got, wanted))
        self.seen += len(texts)
        return encoded

    def _to_check(self, texts: Sequence[str]) -> int:
        """How many of the next texts are checked."""
        for number, text in enumerate(texts):
            before = self.seen + number
            if before >= self.documents or (before >= self.LEAST and self._left <= 0):
                return number
            self._left -= len(text)
        return len(texts)


def _mismatch(encoder: Verified, where: str, got: np.ndarray, wanted: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    ids = [str(int(s[at])) if at < len(s) else "no more tokens" for s in (got, wanted)]
    texts = [repr(encoder.tokenizer.decode([int(i) for i in s[at : at + 4]], whole=False)) for s in (got, wanted)]
    of = f" of {encoder.file}" if encoder.file else ""
    return (
        f"Document {where}{of}: at token {at} the {encoder.name} backend gives {ids[0]} ({texts[0]}), the tokenizer "
        f"itself {ids[1]} ({texts[1]}). Tokenise with --backend {encoder.tokenizer.kind}, and please report this text."
    )
