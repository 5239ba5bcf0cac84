"""What a fastText model file says of itself, checked to its last byte.

fastText (Joulin et al. 2017, arXiv 1607.01759) loads a truncated model without a word and then predicts nothing, or takes
the process down. So the file is walked first, all little-endian::

    i32 magic, i32 version
    i32 x 12: dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate;  f64 t
    i32 entries, i32 words, i32 labels, i64 tokens, i64 pruned (-1: none)
    entries x (name, 0 byte, i64 count, i8 kind: 0 word, 1 label);  pruned x (i32, i32)
    u8 quantised, input matrix;  u8 quantised (if the input is), output matrix
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from slm.config.errors import RunError

MAGIC, VERSIONS = 793712314, (11, 12)
SUPERVISED = 3


def labels(path: Path) -> list[str]:
    """The labels of a supervised model, as the file spells them. Raises `RunError` if it isn't one, or isn't whole."""
    with path.open("rb") as file:
        if path.stat().st_size < 8:
            raise RunError(f"{path}: fastText can't read this: {path.stat().st_size} bytes are no model.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            walk = _Walk(raw, path)
            magic, version = walk.take("ii")
            if magic != MAGIC or version not in VERSIONS:
                what = f"version {version} of its format" if magic == MAGIC else "not one of its binary models"
                raise RunError(
                    f"{path}: fastText can't read this: {what}. Models are .bin or .ftz; .vec holds vectors alone."
                )
            settings = walk.take("12id")
            found = _dictionary(walk)
            (quantised,) = walk.take("?")
            _quantised_matrix(walk) if quantised else _matrix(walk)
            (output_too,) = walk.take("?")
            _quantised_matrix(walk) if quantised and output_too else _matrix(walk)
            if walk.at != len(raw):
                raise RunError(f"{path}: {len(raw) - walk.at} bytes follow the end of the model. The file is damaged.")
    if settings[7] != SUPERVISED or not found:
        raise RunError(f"{path}: holds word vectors, no labels. Scoring needs a supervised model.")
    return found


class _Walk:
    """Reads on through a file; what would lie beyond its end is an error."""

    def __init__(self, raw: mmap.mmap, path: Path) -> None:
        self.raw, self.path, self.at = raw, path, 0

    def take(self, form: str) -> tuple[Any, ...]:
        at = self.at
        self.skip(struct.calcsize("<" + form))
        return struct.unpack_from("<" + form, self.raw, at)

    def name(self) -> bytes:
        end = self.raw.find(b"\0", self.at)
        start = self.at
        self.skip(end + 1 - start if end >= 0 else len(self.raw))
        return self.raw[start:end]

    def skip(self, size: int) -> None:
        if size < 0 or self.at + size > len(self.raw):
            raise RunError(
                f"{self.path}: the model ends after {len(self.raw)} bytes, but byte {self.at + max(size, 0)} is needed: "
                f"the file is incomplete or damaged. Fetch it again."
            )
        self.at += size


def _dictionary(walk: _Walk) -> list[str]:
    entries, _, _, _, pruned = walk.take("iiiqq")
    found = []
    for _ in range(entries):
        name = walk.name()
        _, kind = walk.take("qb")
        if kind == 1:
            found.append(name.decode("utf-8", "replace"))
    walk.skip(8 * max(0, pruned))
    return found


def _matrix(walk: _Walk) -> None:
    rows, columns = walk.take("qq")
    if rows < 0 or columns < 0:
        walk.skip(-1)
    walk.skip(4 * rows * columns)


def _quantised_matrix(walk: _Walk) -> None:
    """Product quantisation: a byte per piece of a row, 256 centroids for each, and perhaps the same for the rows' norms."""
    norms, rows, _, size = walk.take("?qqi")
    walk.skip(size)
    _centroids(walk)
    if norms:
        walk.skip(rows)
        _centroids(walk)


def _centroids(walk: _Walk) -> None:
    dim, _, _, _ = walk.take("iiii")
    walk.skip(4 * 256 * dim)
