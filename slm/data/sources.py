"""Where documents come from. A source yields `Document`s in a fixed order, whatever machine reads it."""

from __future__ import annotations

import gzip
import json
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic

from slm.config.errors import ConfigError, RunError, suggest
from slm.config.registry import Part, Registry

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
"""Local files that slm reads."""

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


@dataclass(frozen=True)
class Document:
    """A text and the id that decides, by its hash, whether it is held out."""

    id: str
    text: str


class SourcePart(Part):
    """A source of documents."""

    def documents(self) -> Iterator[Document]:
        """All documents, in an order that depends on nothing but the source's contents."""
        raise NotImplementedError

    def state(self) -> Any:
        """What identifies the contents without reading them all: goes into the token store's name."""
        raise NotImplementedError


source = Registry("source", SourcePart)
SourceSlot = Annotated[SourcePart, source.field()]


@source.register("stdlib")
class Stdlib(SourcePart):
    """The sources of the running Python, read in place: about 9 MB that every machine has. A smoke corpus.

    Left out: tests, idlelib, encodings, lib2to3 and generated tables, which differ most between builds.
    """

    def documents(self) -> Iterator[Document]:
        root = Path(sysconfig.get_paths()["stdlib"])
        for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
            name = path.relative_to(root)
            if _LEFT_OUT & set(name.parts) or name.name.startswith(_GENERATED):
                continue
            try:
                yield Document(name.as_posix(), path.read_bytes().decode("utf-8"))
            except UnicodeDecodeError:
                continue  # a handful of sources declare another encoding; the corpus is UTF-8

    def state(self) -> str:
        return f"python-{platform.python_version()}"


@source.register("local")
class Local(SourcePart):
    """Local files: .txt (a document each), .jsonl, .jsonl.gz, .jsonl.zst (a document a line)."""

    paths: tuple[str, ...] = pydantic.Field(min_length=1)
    """Files, directories (searched recursively) or glob patterns."""
    text_field: str = "text"
    """The key of a JSON line that holds the text."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with a broken line."""

    def files(self) -> list[Path]:
        """The files that the paths name, sorted. Raises `ConfigError` for a path that names none."""
        found: set[Path] = set()
        for given in self.paths:
            path = Path(given).expanduser()
            if path.is_file():
                matches = [path]
            elif path.is_dir():
                matches = [p for p in path.rglob("*") if p.name.endswith(SUFFIXES)]
            else:
                matches = [p for p in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if p.is_file()]
            if not matches:
                near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
                raise ConfigError(f"data.source.paths: {given!r} names no file. {near}".strip())
            found.update(matches)
        return sorted(found)

    def documents(self) -> Iterator[Document]:
        for path in self.files():
            if not path.name.endswith(SUFFIXES):
                raise ConfigError(f"{path}: unknown kind of file. slm reads {', '.join(SUFFIXES)}.")
            if path.suffix in (".txt", ".md"):
                yield Document(path.name, _decode(path.read_bytes(), str(path)))
            else:
                yield from self._lines(path)

    def _lines(self, path: Path) -> Iterator[Document]:
        for number, raw in enumerate(_lines_of(path), start=1):
            if not raw.strip():
                continue
            try:
                record = json.loads(raw)
                text = record[self.text_field]
                if not isinstance(text, str):
                    raise TypeError(f"{self.text_field!r} is {type(text).__name__}, not text")
            except (ValueError, KeyError, TypeError) as error:
                if self.on_error == "skip":
                    continue
                raise RunError(
                    f"{path}, line {number}: {_why(error, self.text_field)}. Mend the file, set "
                    f"data.source.text_field, or pass data.source.on_error=skip."
                ) from None
            yield Document(str(record.get("id") or f"{path.name}:{number}"), text)

    def state(self) -> list[tuple[str, int, int]]:
        return [(p.as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in self.files()]


@source.register("synthetic")
class Synthetic(SourcePart):
    """A seeded Markov chain over words with a known entropy rate: the loss a perfect model would reach."""

    seed: int = 0
    count: int = pydantic.Field(512, gt=0)
    """Number of documents."""
    words: int = pydantic.Field(64, gt=1)
    """Size of the vocabulary of the chain."""
    length: int = pydantic.Field(200, gt=0)
    """Words per document."""
    branching: int = pydantic.Field(4, gt=1)
    """Successors of a word, all equally likely: the entropy rate is log2(branching) bits per word."""

    def documents(self) -> Iterator[Document]:
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


def _lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, decompressed by its suffix. A file that ends too early is one readable error."""
    try:
        if path.suffix == ".zst":
            yield from _split_lines(_zstd_chunks(path))
        else:
            opener: Any = gzip.open if path.suffix == ".gz" else open
            with opener(path, "rb") as file:
                yield from file
    except (OSError, EOFError, ValueError) as error:
        raise RunError(f"{path}: can't be read to its end ({error}). The file is truncated or damaged.") from None


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    """Decompressed chunks of all frames. zstandard's own reader takes a truncated frame for the end; this doesn't."""
    import zstandard

    decoder, whole = zstandard.ZstdDecompressor().decompressobj(), True
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            while chunk:
                try:
                    yield decoder.decompress(chunk)
                except zstandard.ZstdError as error:
                    raise ValueError(str(error)) from None
                whole, chunk = decoder.eof, decoder.unused_data
                if whole:
                    decoder = zstandard.ZstdDecompressor().decompressobj()
    if not whole:
        raise EOFError("the last frame is not complete")


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RunError(f"{where}: invalid UTF-8 at byte {error.start}. Convert the file to UTF-8.") from None


def _why(error: Exception, field: str) -> str:
    if isinstance(error, KeyError):
        return f"no key {field!r}"
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return f"not valid JSON ({error})"
    return str(error)
