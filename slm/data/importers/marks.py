"""Marks: taking end- and begin-of-document ids out of documents, and checking that they are where they should be.

Two ways: `strip` for files whose index says where documents lie, marks included; `split` for files in which the
marks themselves are all there is. Both look at every token once, and at an id that the tokenizer doesn't have they stop.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from slm.config.errors import ConfigError, RunError
from slm.data.importers.base import ImporterPart, TokenFile, Tokens


@dataclass
class _Documents:
    """Documents [start, end) that may have marks at their ends; all arrays of shape (documents,)."""

    starts: np.ndarray
    ends: np.ndarray
    first: np.ndarray
    """First id of each; anything for documents without tokens."""
    last: np.ndarray
    ids: list[str] | None = None
    cut: np.ndarray | None = None
    """Which are known to be pieces."""
    gaps: Counter[int] = field(default_factory=Counter)
    empty: int = 0
    """Documents without tokens that were dropped already."""

    def where(self, keep: np.ndarray) -> "_Documents":
        """Only some of them; the others are dropped as empty."""
        ids = None if self.ids is None else [self.ids[i] for i in np.flatnonzero(keep)]
        cut = None if self.cut is None else self.cut[keep]
        rest = (self.starts[keep], self.ends[keep], self.first[keep], self.last[keep])
        return _Documents(*rest, ids, cut, self.gaps, self.empty + int(np.count_nonzero(~keep)))


def strip(
    tokens: Tokens,
    bounds: tuple[np.ndarray, np.ndarray],
    part: ImporterPart,
    vocab_size: int,
    ids: list[str] | None = None,
    tokenizer: str | None = None,
) -> TokenFile:
    """Documents of an index, whose ``bounds`` (starts, ends) include their marks, as a `TokenFile`.

    Raises `RunError` for an id that isn't in the vocabulary, and for a document without the mark that the part
    promises (unless ``part.pieces``); `ConfigError` if documents look marked, but no mark is named.
    """
    check_marks(tokens.path, part, vocab_size)
    blank = np.zeros(len(bounds[0]), np.int64)
    documents = _Documents(*bounds, blank, blank, ids)
    documents = documents.where(documents.ends > documents.starts)
    size, totals = len(documents.starts), Counter[int]()
    documents.first, documents.last = np.empty(size, np.int64), np.empty(size, np.int64)
    lasts = documents.ends - 1
    for start, chunk in tokens.chunks():
        _check_ids(tokens, start, chunk, vocab_size)
        totals.update(_count(chunk, part))
        for positions, found in ((documents.starts, documents.first), (lasts, documents.last)):
            a, b = np.searchsorted(positions, (start, start + len(chunk)))
            found[a:b] = chunk[positions[a:b] - start]
    return _finish(tokens, documents, part, (part.bos, part.eos), totals, tokenizer)


def split(
    tokens: Tokens,
    mark: int,
    side: Literal["before", "after"],
    part: ImporterPart,
    vocab_size: int,
    tokenizer: str | None = None,
) -> TokenFile:
    """Documents that only a mark before or after each tells apart, as a `TokenFile`. Errors as in `strip`.

    What stands before the first mark *before* a document continues one of another file (shards are cut anywhere in such
    formats): it is a piece, always accepted. What stands after the last mark *after* one is a document cut off.
    """
    check_marks(tokens.path, part, vocab_size)
    at, after, before, totals = [], [], [], Counter[int]()
    previous, ends = np.array([mark ^ 1], np.uint32), (-1, -1)  # before the first token stands anything but a mark
    for start, chunk in tokens.chunks():
        _check_ids(tokens, start, chunk, vocab_size)
        totals.update(_count(chunk, part, mark))
        window = np.concatenate([previous.astype(chunk.dtype), chunk])
        here = np.flatnonzero(chunk == mark)
        at.append(here + start)
        before.append(window[here].astype(np.int64))
        after.append(chunk[window[:-1] == mark].astype(np.int64))
        previous, ends = window[-1:].copy(), (ends[0] if start else int(chunk[0]), int(chunk[-1]))
    marks = np.concatenate([np.empty(0, np.int64), *at])
    if not len(marks):
        raise RunError(
            f"{tokens.path}: id {mark}, which should stand {side} every document, doesn't occur. Is it the mark of this "
            f"file's tokenizer?"
        )
    edges = (np.concatenate([[-1], marks]) + 1, np.append(marks, tokens.count))
    first = np.concatenate([[ends[0]], *after])[: len(marks) + 1]
    first = np.append(first, [-1] * (len(marks) + 1 - len(first)))  # a mark at the very end has nothing after it
    cut = np.zeros(len(marks) + 1, bool)
    cut[0 if side == "before" else -1] = True
    documents = _Documents(
        *edges, first, np.concatenate([*before, [ends[1]]]), cut=cut, gaps=Counter({mark: len(marks)})
    )
    nothing = cut & (documents.ends == documents.starts)  # no document at all, rather than one without tokens
    documents = replace(documents.where(~nothing), empty=0)
    if side == "after" and not part.pieces and documents.cut is not None and documents.cut.any():
        raise RunError(
            f"{tokens.path}: {int((documents.ends - documents.starts)[documents.cut][0])} tokens follow the last mark "
            f"({mark}): a document was cut off. Fetch the file whole, or accept pieces of documents (pieces=true)."
        )
    other = (part.bos, None) if side == "after" else (None, part.eos)
    if part.bos == part.eos:  # between documents stand two of the same: what looks like an empty document is none
        other = (None, None)
        documents = replace(documents.where(documents.ends > documents.starts), empty=0)
    return _finish(tokens, documents, part, other, totals, tokenizer)


def _finish(
    tokens: Tokens,
    documents: _Documents,
    part: ImporterPart,
    marks: tuple[int | None, int | None],
    totals: Counter[int],
    tokenizer: str | None,
) -> TokenFile:
    """Take (begin, end) marks off the documents, and check that all have them."""
    documents = documents.where(documents.ends > documents.starts)
    cut = np.zeros(len(documents.starts), bool) if documents.cut is None else documents.cut.copy()
    if not part.unmarked:
        _suspect(tokens, documents, part)
    starts, ends = documents.starts.copy(), documents.ends.copy()
    for name, mark, ids in (("eos", marks[1], documents.last), ("bos", marks[0], documents.first)):
        if mark is None:
            continue
        has = (ids == mark) & (ends > starts)
        if name == "eos":
            ends -= has
        else:
            starts += has
        documents.gaps[mark] += int(np.count_nonzero(has))
        lacking = ~has & (ends > starts)
        cut |= lacking
        if lacking.any() and not part.pieces:
            raise RunError(_lacking(tokens, documents, lacking, name, mark, ids))
    kept = replace(documents, starts=starts, ends=ends, cut=cut)
    kept = kept.where(kept.ends > kept.starts)
    assert kept.cut is not None
    return TokenFile(
        tokens_path=tokens.path,
        byte_offset=tokens.byte_offset,
        dtype=tokens.dtype,
        count=tokens.count,
        starts=kept.starts,
        ends=kept.ends,
        ids=kept.ids,
        specials={mark: n for mark, n in sorted(kept.gaps.items()) if n},
        empty=kept.empty,
        pieces=int(np.count_nonzero(kept.cut)),
        inner=sum(totals[mark] - kept.gaps[mark] for mark in totals),
        tokenizer=tokenizer,
    )


def _check_ids(tokens: Tokens, start: int, chunk: np.ndarray, vocab_size: int) -> None:
    if int(chunk.max()) >= vocab_size:
        at = int(np.argmax(chunk >= vocab_size))
        raise RunError(
            f"{tokens.path}: id {chunk[at]} at token {start + at}, but the tokenizer has ids below {vocab_size}. The file was "
            f"made with another tokenizer, or its ids have another width than {tokens.dtype.name}."
        )


def _count(chunk: np.ndarray, part: ImporterPart, *others: int) -> dict[int, int]:
    marks = {mark for mark in (part.eos, part.bos, *others) if mark is not None}
    return {mark: int(np.count_nonzero(chunk == mark)) for mark in marks}


def _suspect(tokens: Tokens, documents: _Documents, part: ImporterPart) -> None:
    """If all documents end or begin alike, that is a mark, or a coincidence that the user must state."""
    for name, verb, named, ids in (
        ("eos", "end", part.eos, documents.last),
        ("bos", "begin", part.bos, documents.first),
    ):
        if named is None and len(ids) > 1 and (ids == ids[0]).all():
            raise ConfigError(unnamed_mark(tokens.path, len(ids), verb, name, int(ids[0])))


def check_marks(path: Path, part: ImporterPart, vocab_size: int) -> None:
    """Raise `ConfigError` for a mark that isn't in the vocabulary."""
    for name, mark in (("eos", part.eos), ("bos", part.bos)):
        if mark is not None and mark >= vocab_size:
            raise ConfigError(
                f"{path}: {name}={mark}, but the tokenizer has ids below {vocab_size}. The mark and the ids must be those of "
                f"the tokenizer that made the file."
            )


def unnamed_mark(path: Path, documents: int, verb: str, name: str, mark: int | None) -> str:
    """What to say when all documents end or begin with one id."""
    return (
        f"{path}: all {documents} documents {verb} with id {mark}. If that is a mark, name it ({name}={mark}): stores keep "
        f"documents without marks. If it is text, say so (unmarked=true)."
    )


def _lacking(tokens: Tokens, documents: _Documents, lacking: np.ndarray, name: str, mark: int, ids: np.ndarray) -> str:
    number, where = int(np.argmax(lacking)), "end" if name == "eos" else "begin"
    label = documents.ids[number] if documents.ids else f"the one at token {documents.starts[number]}"
    return (
        f"{tokens.path}: {int(lacking.sum())} of {len(lacking)} documents don't {where} with {name}={mark}; the first is "
        f"{label}, which {where}s with {ids[number]}. Name the mark of this file's tokenizer, leave it out if there is none, or "
        f"accept pieces of documents (pieces=true)."
    )
