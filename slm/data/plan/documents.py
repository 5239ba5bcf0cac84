"""What the plan asks of a store: lengths, places and tokens of documents, nothing else.

Every answer is for a run of documents or tokens, so that a corpus of a billion documents never stands in
memory as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Documents(Protocol):
    """The documents of one split of one store, numbered from 0."""

    @property
    def content_hash(self) -> str:
        """Equal for equal documents under equal tokenizers, and different otherwise."""

    def __len__(self) -> int: ...

    def lengths(self, first: int, last: int) -> np.ndarray:
        """Tokens of each of the documents [first, last), int64."""

    def offsets(self, first: int, last: int) -> np.ndarray:
        """Place of the first token of each of the documents [first, last), int64, in the token space of the split:
        all shards one after the other. An empty document has the place where its tokens would be."""

    def take(self, offset: int, length: int) -> np.ndarray:
        """The tokens [offset, offset + length) of the token space, all of one document. Raises `RunError` if they
        are not the ones that were written."""


class MemoryDocuments:
    """Documents held in memory: for tests and experiments on made-up text."""

    def __init__(self, documents: Sequence[Sequence[int] | np.ndarray]) -> None:
        self._lengths = np.array([len(d) for d in documents], dtype=np.int64)
        self._offsets = np.cumsum(self._lengths) - self._lengths
        self._tokens = np.concatenate([np.asarray(d, dtype=np.uint32) for d in documents] or [np.empty(0, np.uint32)])
        self.content_hash = hashlib.sha256(self._tokens.tobytes() + self._lengths.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._lengths)

    def lengths(self, first: int, last: int) -> np.ndarray:
        return self._lengths[first:last]

    def offsets(self, first: int, last: int) -> np.ndarray:
        return self._offsets[first:last]

    def take(self, offset: int, length: int) -> np.ndarray:
        return self._tokens[offset : offset + length]
