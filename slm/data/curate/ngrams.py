"""Hashes of word n-grams, vectorised: a text of any size, tens of megabytes a second on one core.

Normalisation is that of GPT-3's decontamination (Brown et al. 2020, arXiv 2005.14165, appendix C): lower case, punctuation
removed, words are what white space separates. Punctuation is Unicode's categories P and S, which for ASCII are
Python's `string.punctuation`.

The hash of a run of words is a polynomial over the code points of the normalised text, so one prefix sum gives the hashes of
all runs of any length: with S[i] = sum of x_j B^j for j < i (mod 2^64), a run from s to e has (S[e] - S[s]) B^-s.
(The high bits of such a hash are better than the low ones.) Two different runs collide with a probability of about 2^-60 or less: in a corpus of 10^12 words
beside 10^7 n-grams, that is some ten documents.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache

import numpy as np

CHUNK = 1 << 18
"""Characters normalised at once: bounds the memory that a huge document needs (about 60 bytes per character)."""

_LONGEST_CARRY = 1 << 20

_WORD, _DROP, _SPACE = 0, 1, 2
_BLANK = 32
_BASE = 0x9E3779B97F4A7C15
_SPREAD = np.uint64(0xD6E8FEB86659FD93)
_WHITE = re.compile(r"\s")


class Words:
    """The normalised words of a text, or of a piece of it."""

    def __init__(self, codes: np.ndarray) -> None:
        """``codes``: code points, single blanks between words, none at the ends."""
        self.codes = codes
        blanks = np.flatnonzero(codes == _BLANK)
        last = [len(codes)] if len(codes) else []
        self.starts = np.concatenate([np.zeros(len(last), np.int64), blanks + 1])
        self.ends = np.concatenate([blanks, np.array(last, np.int64)])
        self._sums: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def ngrams(self, n: int, at: np.ndarray | None = None) -> np.ndarray:
        """Hash of every run of n words, or of those that start at the words ``at`` and are whole: uint64 of shape (runs,)."""
        runs = len(self) - n + 1
        if runs <= 0:
            return np.empty(0, np.uint64)
        if self._sums is None:
            self._sums = _prefix_sums(self.codes)
        if at is None:
            starts, ends = self.starts[:runs], self.ends[n - 1 :]
        else:
            at = at[at < runs]
            starts, ends = self.starts[at], self.ends[at + (n - 1)]
        return (self._sums[ends] - self._sums[starts]) * _powers(len(self.codes))[1][starts]


def pieces(text: str, overlap: int) -> Iterator[Words]:
    """The words of a text, in pieces of about `CHUNK` characters; each repeats the last ``overlap`` words of the one before.

    So every run of up to ``overlap + 1`` words is whole in one piece. (A word longer than `CHUNK` counts as several.)
    """
    carried, at = np.empty(0, np.uint32), 0
    while at < len(text):
        cut = _WHITE.search(text, at + CHUNK, at + 2 * CHUNK) if len(text) - at > CHUNK else None
        end = cut.start() if cut else min(len(text), at + 2 * CHUNK)
        codes = _normalize(text[at:end])
        if len(carried) and len(codes):
            codes = np.concatenate([carried, np.array([_BLANK], np.uint32), codes])
        words, at = Words(codes if len(codes) else carried), end
        yield words
        carried = words.codes[words.starts[-overlap] :] if 0 < overlap < len(words) else words.codes
        if not overlap or len(carried) > _LONGEST_CARRY:  # words of such length are in no evaluation set
            carried = carried[:0]


def _normalize(text: str) -> np.ndarray:
    codes = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), "<u4")
    kinds = _kinds()[codes]
    kept = kinds != _DROP
    codes, white = codes[kept], kinds[kept] == _SPACE
    codes = np.where(white, np.uint32(_BLANK), codes)
    first = np.empty(len(codes), bool)  # characters that start a word or a run of white space
    first[:1], first[1:] = True, white[1:] != white[:-1]
    codes = codes[~white | first]
    return codes[int(len(codes) > 0 and codes[0] == _BLANK) : len(codes) - int(len(codes) > 1 and codes[-1] == _BLANK)]


@cache
def _kinds() -> np.ndarray:
    """What becomes of every code point: uint8 of shape (0x110000,)."""
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character)[0] in "PS":
            kinds[code] = _DROP
        elif character.isspace():
            kinds[code] = _SPACE
    return kinds


def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """B^i and B^-i mod 2^64 for i < size, at least."""
    return _tables(max(1 << 16, 1 << size.bit_length()))


@cache
def _tables(length: int) -> tuple[np.ndarray, np.ndarray]:
    return _geometric(_BASE, length), _geometric(pow(_BASE, -1, 1 << 64), length)


def _geometric(base: int, length: int) -> np.ndarray:
    powers = np.full(length, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _prefix_sums(codes: np.ndarray) -> np.ndarray:
    x = (codes.astype(np.uint64) + np.uint64(1)) * _SPREAD
    x ^= x >> np.uint64(32)
    x *= _powers(len(codes))[0][: len(codes)]
    sums = np.empty(len(codes) + 1, np.uint64)
    sums[0] = 0
    np.cumsum(x, out=sums[1:])
    return sums
