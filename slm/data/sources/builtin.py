"""Sources that need no files: the running Python's own sources, and text with a known entropy."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydantic

from slm.config.base import Seed
from slm.data.document import Broken, Document, Unit
from slm.data.sources.base import SourcePart, source

_LEFT_OUT = frozenset(
    [
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "encodings",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "dist-packages",
        "__pycache__",
    ]
)
_GENERATED = ("_sysconfigdata", "_sysconfig_vars")


@source.register("stdlib")
class Stdlib(SourcePart):
    """The sources of the running Python, read in place: about 9 MB that every machine has. A smoke corpus.

    Left out: tests, idlelib, encodings, lib2to3 and generated tables, which differ most between builds.
    """

    def units(self) -> list[Unit]:
        return [Unit(self.part_name, f"{self.part_name}:", sum(path.stat().st_size for _, path in _files()))]

    def read(self, unit: Unit) -> Iterator[Document | Broken]:
        for name, path in _files():
            try:
                yield Document(name, path.read_bytes().decode("utf-8"))
            except UnicodeDecodeError as error:  # a handful of sources declare another encoding; the corpus is UTF-8
                yield Broken(name, f"invalid UTF-8 at byte {error.start}", "invalid_utf8")

    def _skips(self) -> bool:
        return True

    def state(self) -> str:
        return f"python-{platform.python_version()}"


@source.register("synthetic")
class Synthetic(SourcePart):
    """A seeded Markov chain over words with a known entropy rate: the loss a perfect model would reach."""

    seed: Seed = 0
    """Another seed, another chain."""
    count: int = pydantic.Field(512, gt=0)
    """Number of documents."""
    words: int = pydantic.Field(64, gt=1)
    """Size of the vocabulary of the chain."""
    length: int = pydantic.Field(200, gt=0)
    """Words per document."""
    branching: int = pydantic.Field(4, gt=1)
    """Successors of a word, all equally likely: the entropy rate is log2(branching) bits per word."""

    def units(self) -> list[Unit]:
        return [Unit(self.part_name, f"{self.part_name}:", self.count * self.length * 4)]

    def read(self, unit: Unit) -> Iterator[Document | Broken]:
        rng = np.random.Generator(np.random.PCG64(self.seed))
        successors = np.stack([rng.permutation(self.words)[: self.branching] for _ in range(self.words)])
        names = [_word(i) for i in range(self.words)]
        for index in range(self.count):
            word, text = int(rng.integers(self.words)), []
            for choice in rng.integers(self.branching, size=self.length):
                text.append(names[word])
                word = int(successors[word, choice])
            yield Document(f"synthetic-{index}", " ".join(text))

    def state(self) -> str:
        return "synthetic-1"

    @property
    def bits_per_word(self) -> float:
        """Entropy rate of the chain."""
        return float(np.log2(self.branching))


def _word(index: int) -> str:
    """Three letters, distinct for every index below 17,576."""
    a, b = divmod(index, 676)
    return "".join(chr(97 + x) for x in (b // 26, b % 26, a % 26))


def _files() -> Iterator[tuple[str, Path]]:
    """Name and path of every file of the standard library that is in the corpus, by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        name = path.relative_to(root)
        if not _LEFT_OUT & set(name.parts) and not name.name.startswith(_GENERATED):
            yield name.as_posix(), path
