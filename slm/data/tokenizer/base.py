"""What every tokenizer can do, whatever library does it.

A tokenizer at work is lossless: ``decode_bytes(encode(text))`` is the text, byte for byte. (The few files of
other projects that can't keep this say so in `Tokenizer.loss`, and the ``file`` part refuses them unless asked.)
Documents carry no special tokens; the end-of-text token is put between them by the packer. A document that
*contains* the characters of a special token gets ordinary tokens for them.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain, pairwise
from typing import ClassVar, TypeVar

import numpy as np

from slm.config.errors import ConfigError, RunError

T = TypeVar("T")

END_OF_TEXT = "<|endoftext|>"

UTF8_BYTES = frozenset([*range(0xC0), *range(0xC2, 0xF5)])
"""The bytes that occur in UTF-8: a vocabulary needs no others to spell every text."""


class Tokenizer(abc.ABC):
    """A tokenizer at work. ``eot_id`` ends (and, for the model, starts) a document."""

    kind: ClassVar[str]
    """The library that does the work; also the name of its backend."""
    file_name: ClassVar[str]
    """What its file is called beside a store's shards or a checkpoint's weights."""
    kinds: ClassVar[list[type["Tokenizer"]]] = []

    raw: bytes
    vocab_size: int
    """Largest id plus one."""
    eot: str
    eot_id: int
    special_ids: frozenset[int]
    """Ids that no text encodes to."""
    prefix: bytes = b""
    """What `encode` puts before a document: a space in models of the Llama 2 kind, otherwise nothing."""
    loss: str = ""
    """What a text loses on the way through, in words; empty: nothing."""
    normal_form: str = ""
    """``NFC`` where text is brought into that form first: other bytes, but by Unicode's definition the same text."""

    def __init_subclass__(cls) -> None:
        Tokenizer.kinds.append(cls)

    @classmethod
    @abc.abstractmethod
    def recognises(cls, raw: bytes) -> bool:
        """Whether a file is of this kind, by its contents."""

    @abc.abstractmethod
    def __init__(self, raw: bytes, eot: str | None = None) -> None: ...

    @classmethod
    def from_bytes(cls, raw: bytes, eot: str | None = None) -> "Tokenizer":
        """Read the contents of a ``tokenizer.json`` or of a sentencepiece ``.model``; the contents tell which.

        ``eot`` names the token between documents. It is kept in the bytes that `to_bytes` gives, so that nobody
        has to name it twice. Raises `ConfigError` if the file is of neither kind or has no such token.
        """
        for kind in Tokenizer.kinds:
            if kind.recognises(raw):
                return kind(raw, eot)
        raise ConfigError("This is neither a tokenizer.json nor a sentencepiece .model.")

    def __reduce__(self) -> tuple[Callable[[bytes], "Tokenizer"], tuple[bytes]]:
        # Pickled by its file: the libraries' own pickles forget settings, such as how special tokens in text are read.
        return Tokenizer.from_bytes, (self.raw,)

    def to_bytes(self) -> bytes:
        """The contents of the file, which `from_bytes` reads."""
        return self.raw

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def lossless(self) -> bool:
        """Whether the exact bytes of every text come back."""
        return not (self.loss or self.normal_form)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens. Raises `ConfigError` for text that isn't valid Unicode."""
        return self.encode_batch([text], threads=1)[0]

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """Ids of several texts, the same as one by one; ``threads`` None: as many as the library likes.

        With ``threads=1`` never more than one thread encodes, and the library's own pool isn't used, so worker processes
        don't get into each other's way.
        """
        for text in texts:
            refuse_broken(text)
        return self._encode(texts, threads)

    @abc.abstractmethod
    def _encode(self, texts: Sequence[str], threads: int | None) -> list[list[int]]: ...

    def decode_bytes(self, ids: Iterable[int], *, whole: bool = True) -> bytes:
        """The exact bytes behind ids; special tokens give none.

        ``whole``: the ids are a document from its start, so that a `prefix` is taken off again. For pieces of a
        document say ``whole=False``; then the bytes of two pieces, joined, are the bytes of the joined pieces.
        Raises `RunError` for an id that the tokenizer doesn't have.
        """
        table = self.bytes_of
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < len(table):
                raise RunError(f"Id {i} is not one of the tokenizer's {len(table):,} tokens.")
        joined = b"".join([table[i] for i in ids])
        return joined.removeprefix(self.prefix) if whole else joined

    def decode(self, ids: Iterable[int], *, whole: bool = True) -> str:
        """Text of ids; bytes that are no whole character become U+FFFD."""
        return self.decode_bytes(ids, whole=whole).decode("utf-8", errors="replace")

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Length in bytes of every token, int64 of shape (vocab,). Special tokens have 0."""
        return np.array([len(b) for b in self.bytes_of], dtype=np.int64)

    @property
    @abc.abstractmethod
    def bytes_of(self) -> list[bytes]:
        """The bytes of every token, by id; special tokens and gaps have none."""

    @cached_property
    def fallback(self) -> np.ndarray:
        """Which tokens are pieces of characters that have no token of their own, bool of shape (vocab,)."""
        return np.array([not _is_text(b) for b in self.bytes_of])


def refuse_broken(text: str) -> None:
    """Raise `ConfigError` for text that isn't valid Unicode: a lone surrogate has no UTF-8 bytes."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"The text isn't valid UTF-8 (at character {error.start}), so it can't be tokenised."
        ) from None


def spread(texts: Sequence[str], threads: int, encode: Callable[[Sequence[str]], list[T]]) -> list[T]:
    """Encode slices of about equal size in ``threads`` threads, each calling ``encode``; results in order.

    There are a few times as many slices as threads, so that none waits long for the one with the long documents.
    """
    ends = np.cumsum([len(t) + 1 for t in texts])
    cuts = np.searchsorted(ends, np.linspace(0, ends[-1], 4 * threads + 1)[1:-1])
    bounds = [0, *sorted({int(c) for c in cuts} - {0}), len(texts)]
    slices = [texts[a:b] for a, b in pairwise(bounds)]
    with ThreadPoolExecutor(threads) as pool:
        return list(chain.from_iterable(pool.map(encode, slices)))


def encode_pieces(
    texts: Sequence[str],
    split: Callable[[str], list[str]],
    joint: Sequence[int],
    encode: Callable[[Sequence[str]], list[list[int]]],
) -> list[list[int]]:
    """Encode every text in pieces, with the ids ``joint`` where it was split."""
    pieces = [split(text) for text in texts]
    if all(len(split_text) == 1 for split_text in pieces):
        return encode(texts)
    encoded = iter(encode([piece for split_text in pieces for piece in split_text]))
    out = []
    for split_text in pieces:
        ids = list(next(encoded))
        for _ in split_text[1:]:
            ids += [*joint, *next(encoded)]
        out.append(ids)
    return out


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
