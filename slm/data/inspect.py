"""Looking into stores and plans: figures, what a row reads, where a document occurs, what differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from slm.config.errors import ConfigError
from slm.config.identity import differences
from slm.data.corpus import Corpus
from slm.data.plan import Plan, diff
from slm.data.store import SPLITS, Split, Store

CHUNK = 1 << 20
MANY = 5_000_000
"""Documents up to which two stores are compared document by document."""


def figures(store: Store) -> dict[str, Any]:
    """Counts, lengths and the account of the input of a store, as `slm data stats --json` prints them."""
    return {
        "splits": {name: _split_figures(split) for name, split in store.splits.items()},
        "accounting": store.manifest["accounting"],
        "tokenizer": store.manifest["tokenizer"],
        "content": store.content_hash,
    }


def _split_figures(split: Split) -> dict[str, Any]:
    counts = np.zeros(64, np.int64)
    tokens = np.zeros(64, np.int64)
    longest = 0
    for lengths in _lengths(split):
        bins = np.frexp(lengths.astype(np.float64))[1]  # bin b: 2^(b-1) <= length < 2^b; 0: empty
        counts += np.bincount(bins, minlength=64)
        tokens += np.bincount(bins, weights=lengths, minlength=64).astype(np.int64)
        longest = max(longest, int(lengths.max(initial=0)))
    return {
        "documents": len(split),
        "tokens": split.tokens,
        "bytes": split.bytes,
        "bytes_per_token": split.bytes / max(1, split.tokens),
        "mean_length": split.tokens / max(1, len(split)),
        "median_length": _median(split),
        "longest": longest,
        "shards": len(split.shards),
        "lengths": [
            {"from": 1 << (b - 1) if b else 0, "below": 1 << b, "documents": int(counts[b]), "tokens": int(tokens[b])}
            for b in range(64)
            if counts[b]
        ],
    }


def _lengths(split: Split) -> Iterator[np.ndarray]:
    for first in range(0, len(split), CHUNK):
        yield split.lengths(first, min(first + CHUNK, len(split)))


def _median(split: Split) -> int:
    """Exact for a million documents, of an evenly spread sample of as many above."""
    step = max(1, len(split) // CHUNK)
    sample = np.concatenate([np.empty(0, np.int64), *(lengths[::step] for lengths in _lengths(split))])
    return int(np.median(sample)) if len(sample) else 0


def find_documents(store: Store, doc_id: str) -> Iterator[tuple[str, int]]:
    """(split, number) of the documents whose id is ``doc_id``."""
    for name, split in store.splits.items():
        for first, table in zip(split.first_doc, split.meta(("id",)), strict=False):
            for at in np.flatnonzero(pc.equal(table["id"], doc_id).to_numpy(zero_copy_only=False)):
                yield name, int(first) + int(at)


def similar_ids(store: Store, doc_id: str, limit: int = 5) -> list[str]:
    """Ids that contain ``doc_id``, or the first ones of the store."""
    found: list[str] = []
    for table in chain.from_iterable(split.meta(("id",)) for split in store.splits.values()):
        ids = table["id"]
        found += ids.filter(pc.match_substring(ids, doc_id)).slice(0, limit).to_pylist()
        if len(found) >= limit:
            break
    return found[:limit]


def compare_stores(a: Store, b: Store) -> dict[str, Any]:
    """What differs between two stores: settings, totals, and documents by id and content."""
    settings = differences(
        {
            "made_of": a.manifest["made_of"],
            "tokenizer": a.manifest["tokenizer"],
            "accounting": a.manifest["accounting"],
        },
        {
            "made_of": b.manifest["made_of"],
            "tokenizer": b.manifest["tokenizer"],
            "accounting": b.manifest["accounting"],
        },
    )
    result: dict[str, Any] = {"same_content": a.content_hash == b.content_hash, "settings": settings, "splits": {}}
    for name in SPLITS:
        sides = (a.split(name), b.split(name))
        entry: dict[str, Any] = {"documents": [len(s) for s in sides], "tokens": [s.tokens for s in sides]}
        if max(map(len, sides)) <= MANY:
            entry |= _compare_documents(*sides)
        result["splits"][name] = entry
    return result


def _compare_documents(a: Split, b: Split) -> dict[str, Any]:
    left, right = _signatures(a), _signatures(b)
    both = left.keys() & right.keys()
    changed = [doc for doc in both if left[doc] != right[doc]]
    only = ([d for d in left if d not in right], [d for d in right if d not in left])
    return {
        "in_both": len(both),
        "changed": len(changed),
        "only_first": len(only[0]),
        "only_second": len(only[1]),
        "examples": {"changed": sorted(changed)[:3], "only_first": only[0][:3], "only_second": only[1][:3]},
    }


def _signatures(split: Split) -> dict[str, int]:
    """A hash of the tokens of every document, by id."""
    return {doc.id: hash(doc.tokens.tobytes()) for doc in split.documents()}


def plot_lengths(result: dict[str, Any], out: Path) -> None:
    """Draw the documents and tokens of each split by length into a picture (.svg, .png, .pdf)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    splits = {name: s for name, s in result["splits"].items() if s["documents"]}
    figure, axes = plt.subplots(1, len(splits), figsize=(5.2 * len(splits), 3.4), squeeze=False, layout="constrained")
    for axis, (name, split) in zip(axes[0], splits.items(), strict=True):
        edges = [bin_["from"] for bin_ in split["lengths"]]
        for offset, key, colour in ((-0.2, "documents", "#4c72b0"), (0.2, "tokens", "#dd8452")):
            shares = [100 * bin_[key] / split[key] for bin_ in split["lengths"]]
            axis.bar(np.arange(len(edges)) + offset, shares, width=0.4, label=f"% of {key}", color=colour)
        axis.set_xticks(np.arange(len(edges)), [f"{e:,}" for e in edges], rotation=60, fontsize=7)
        axis.set_xlabel("tokens in the document, from")
        axis.set_title(f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens", fontsize=10)
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)
    plt.close(figure)


def shown_rows(corpus: Corpus, plan: Plan, numbers: range) -> list[dict[str, Any]]:
    """Rows of a run as a person would read them: pieces of documents, decoded, with their ids and bounds."""
    found = []
    for n in numbers:
        row = plan.row(n)
        of_row = plan.pieces(n)
        name = of_row[0].source
        source = plan.names.index(name)
        pieces, at = [], 0
        for piece in of_row:
            tokens = row.tokens[at : at + piece.length][1 if piece.starts else 0 :]
            last = row.targets[at + piece.length - 1]
            tokens = tokens if piece.ends else np.append(tokens, last)
            at += piece.length
            pieces.append(
                {
                    "document": piece.document,
                    "id": document_id(corpus.stores[name].split(plan.split), piece.document),
                    "start": max(0, piece.start - 1),
                    "length": len(tokens),
                    "starts": piece.starts,
                    "ends": piece.ends,
                    "text": corpus.tokenizer.decode(tokens.tolist(), whole=piece.starts),
                }
            )
        epoch = int(plan.drawn(n)[source]) // plan.sources[source].index.rows
        found.append({"row": n, "source": name, "epoch": epoch, "padding": plan.seq_len - at, "pieces": pieces})
    return found


def document_id(split: Split, number: int) -> str:
    """The id of a document of a split."""
    shard = int(np.searchsorted(split.first_doc, number, side="right")) - 1
    return str(split.shards[shard].meta(("id",))["id"][number - int(split.first_doc[shard])].as_py())


def occurrences(corpus: Corpus, plan: Plan, doc_id: str, *, rows: int, batch_rows: int) -> list[dict[str, Any]]:
    """Where a run of ``rows`` rows reads the documents of an id. Raises `ConfigError` if no source has it."""
    found = []
    for name, store in corpus.stores.items():
        for split, number in find_documents(store, doc_id):
            places = plan.where(number, rows=rows, source=name, batch_rows=batch_rows) if split == plan.split else []
            found.append(
                {
                    "source": name,
                    "split": split,
                    "number": number,
                    "occurrences": [_in_tokens(asdict(p)) for p in places],
                }
            )
    if not found:
        near = [i for store in corpus.stores.values() for i in similar_ids(store, doc_id)][:5]
        hint = f"Ids like it: {', '.join(near)}." if near else "No id contains it; `slm data show` prints ids."
        raise ConfigError(f"No source of this run has a document with the id {doc_id!r}. {hint}")
    return found


def _in_tokens(occurrence: dict[str, Any]) -> dict[str, Any]:
    """With ``start`` as a place in the document's tokens: prediction 0 is the end-of-text before them."""
    return {**occurrence, "start": max(0, occurrence["start"] - 1)}


def is_store(path: str) -> bool:
    """Whether a path or URL is meant as a token store."""
    return "://" in path or (Path(path) / "manifest.json").is_file()


def compare_plans(a: Plan, b: Plan) -> dict[str, Any]:
    """What differs between two plans, and from which row on the runs read different tokens."""
    return {
        "settings": diff(a.described, b.described),
        "same_rows": a.hash == b.hash,
        "first_row_that_differs": _parting(a, b),
    }


def _parting(a: Plan, b: Plan, most: int = 4096) -> int | None:
    """The first row in which two plans differ; None if their first ``most`` rows are equal."""
    if a.hash == b.hash:
        return None
    last = min([most, *(plan.limit for plan in (a, b) if plan.limit is not None)])
    for n in range(last):
        left, right = a.row(n), b.row(n)
        if (
            len(left.tokens) != len(right.tokens)
            or (left.tokens != right.tokens).any()
            or (left.docs != right.docs).any()
        ):
            return n
    return None
