"""Made-up text that looks like English to a tokenizer: for tests and benchmarks on machines without a corpus.

Words follow a Zipf-Mandelbrot law (real function words first, then pronounceable inventions), documents have
log-normal lengths of about a thousand tokens in the mean, sentences end and paragraphs break as in web text.
Document *n* depends on the seed and *n* alone, so a longer corpus begins with the shorter one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BLOCK = 256
"""Documents that are made in one go."""
VOCABULARY = 50_000
_TABLE = 1 << 20
_MEDIAN_WORDS, _SIGMA, _LONGEST = 450, 0.9, 50_000

_COMMON = (  # noqa: SIM905
    "the of and to a in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what its about "
    "than into them can only other time new some could these two may first then do any like my now over such our man me "
    "even most made after also did many off before must well back through years where much your way down should because "
    "long each just state those people too mr how little good world make very year still see own work men day get here "
    "between both life being under three never know same last another while us might great old since against go came "
    "right used take school children water number part system information students data health research language"
).split()
_ONSETS = "b c d f g h l m n p r s t v w br ch cl cr dr fl fr gr pl pr sh sl sp st str th tr qu".split()  # noqa: SIM905
_NUCLEI = "a e i o u ea ai ou io ee".split()  # noqa: SIM905
_CODAS = ["", "", "", "n", "r", "s", "t", "l", "nd", "nt", "st", "ck", "ng", "m", "tion", "er"]
_SCRIPTS = {"Latn": 0, "Cyrl": 0x430 - 0x61, "Grek": 0x3B1 - 0x61, "Armn": 0x561 - 0x61}
"""Scripts, by the distance of their small letters from the Latin ones: same words, other bytes."""


class Prose:
    """An endless corpus.

    Args:
        seed: another seed, other documents.
        duplicates: share of documents that repeat an earlier one, letter by letter.
        script: ``Latn``, ``Cyrl``, ``Grek`` or ``Armn``.
    """

    def __init__(self, seed: int = 0, *, duplicates: float = 0.0, script: str = "Latn") -> None:
        self.seed, self.duplicates = seed, duplicates
        self._forms, self._picks = _forms(script), _picks()
        self._first: list[str] = []

    def documents(self) -> Iterator[tuple[str, Sequence[float]]]:
        """Texts, each with eight numbers between 0 and 1 of its own, to make up its metadata from."""
        block = 0
        while True:
            yield from self._block(block)
            block += 1

    def _block(self, number: int) -> list[tuple[str, Sequence[float]]]:
        rng = np.random.Generator(np.random.PCG64([self.seed, number]))
        lengths = np.exp(rng.standard_normal(BLOCK) * _SIGMA + np.log(_MEDIAN_WORDS)).astype(np.int64)
        lengths = np.clip(lengths, 5, _LONGEST)
        raw, ends = self._written(rng, lengths)
        facts = rng.random((BLOCK, 8)).tolist()
        repeats, picks = rng.random(BLOCK) < self.duplicates, rng.random(BLOCK)
        texts: list[str] = []
        start = 0
        for index, end in enumerate(ends):
            text = raw[start:end].decode().rstrip()
            start = end
            earlier = self._first + texts
            if repeats[index] and earlier:
                text = earlier[int(picks[index] * len(earlier))]
            texts.append(text)
        if number == 0:
            self._first = texts
        return list(zip(texts, facts, strict=True))

    def _written(self, rng: np.random.Generator, lengths: np.ndarray) -> tuple[bytes, list[int]]:
        """All documents of a block in a row, as UTF-8, and where each ends."""
        total = int(lengths.sum())
        last = np.cumsum(lengths) - 1
        word = self._picks[rng.integers(_TABLE, size=total, dtype=np.int32)]
        chance = rng.random(total, dtype=np.float32)
        stop = chance < 1 / 17
        stop[last] = True
        after = np.where(stop, 2 + (chance < 1 / 17 / 5), chance > 1 - 1 / 14)  # 0 space, 1 comma, 2 stop, 3 paragraph
        capital = np.empty(total, dtype=bool)
        capital[0], capital[1:] = True, stop[:-1]
        form = word * 8 + after + 4 * capital
        size = self._forms.sizes[form]
        ends = np.cumsum(size)
        source = np.repeat(self._forms.starts[form] - (ends - size), size) + np.arange(ends[-1])
        return self._forms.raw[source].tobytes(), ends[last].tolist()


@dataclass(frozen=True)
class _Forms:
    """Every word in its eight forms: small or capital, before a space, a comma, a stop, or a paragraph's end."""

    raw: np.ndarray
    """All of them in a row, as UTF-8."""
    starts: np.ndarray
    sizes: np.ndarray


@lru_cache(8)
def _forms(script: str) -> _Forms:
    shift = {code: code + _SCRIPTS[script] for code in range(97, 123)}
    words = [word.translate(shift) for word in _vocabulary()]
    ends = (" ", ", ", ". ", ".\n\n")
    forms = [(form + end).encode() for word in words for form in (word, word.capitalize()) for end in ends]
    sizes = np.fromiter(map(len, forms), dtype=np.int64, count=len(forms))
    return _Forms(np.frombuffer(b"".join(forms), dtype=np.uint8), np.cumsum(sizes) - sizes, sizes)


@lru_cache(1)
def _vocabulary() -> list[str]:
    rng = np.random.Generator(np.random.PCG64(20240611))
    words = dict.fromkeys(_COMMON)
    words.update(dict.fromkeys(str(n) for n in (*range(1, 60), 100, 1000, *range(1950, 2026))))
    draws = rng.integers(1 << 16, size=(3 * VOCABULARY, 8)).tolist()  # enough, though inventions repeat
    for a, b, c, d, e, f, length, coda in draws:
        parts = ((a, b), (c, d), (e, f))[: 1 + (length % 8 > 1) + (length % 8 > 5)]
        word = "".join(_ONSETS[x % len(_ONSETS)] + _NUCLEI[y % len(_NUCLEI)] for x, y in parts)
        words.setdefault(word + _CODAS[coda % len(_CODAS)])
        if len(words) == VOCABULARY:
            return list(words)
    raise AssertionError("too few words")


@lru_cache(1)
def _picks() -> np.ndarray:
    """A table of word numbers: a uniform draw from it follows the Zipf-Mandelbrot law."""
    weights = 1 / (np.arange(VOCABULARY) + 2.7) ** 1.05
    cumulative = np.cumsum(weights) / weights.sum()
    return np.searchsorted(cumulative, (np.arange(_TABLE) + 0.5) / _TABLE).astype(np.int64)
