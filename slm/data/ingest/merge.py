"""The second pass: from units in the source's order to shards in the store's order.

Every document has a 64-bit key (`unit.TABLE`). The store's order is the order of the keys, so it is a uniform
random permutation when the key is a hash, and it depends neither on the number of workers nor on the size of
the shards. A shard is a range of keys: it is gathered from all units by itself, in memory of one shard.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from slm.config.files import replace_durably
from slm.data.curate.dedup import find_duplicates, npy_bytes
from slm.data.store import SPLITS
from slm.data.store.shard import write_shard

SHARD_BYTES = 1 << 27
"""Tokens of a shard, about."""
DEDUP_MEMORY = 1 << 28


@dataclass(frozen=True)
class Range:
    """A shard to be: documents of ``split`` whose key lies in [first, last]."""

    number: int
    split: str
    first: int
    last: int


def unit_folder(work: Path, index: int) -> Path:
    """Where the first pass keeps a unit."""
    return work / "units" / f"{index:07d}"


def drop_duplicates(work: Path, units: int) -> int:
    """Write for each unit which of its documents repeat an earlier one (``repeats.npy``); returns how many."""
    done = work / "repeats.json"
    if done.exists():
        return int(json.loads(done.read_text()))
    paths = [unit_folder(work, i) / "hashes.npy" for i in range(units)]
    found: dict[int, list[np.ndarray]] = {}
    total = 0
    for index, rows in find_duplicates(paths, DEDUP_MEMORY, scratch=work):
        found.setdefault(index, []).append(rows)
        total += len(rows)
    for index, parts in found.items():
        replace_durably(unit_folder(work, index) / "repeats.npy", npy_bytes(np.sort(np.concatenate(parts))))
    replace_durably(done, json.dumps(total).encode())
    return total


def totals(work: Path, units: int) -> tuple[Counter[str], dict[str, list[int]]]:
    """(where all records went, tokens of each unit by split) after the first pass."""
    counts: Counter[str] = Counter()
    tokens: dict[str, list[int]] = {name: [] for name in SPLITS}
    for index in range(units):
        read = json.loads((unit_folder(work, index) / "counts.json").read_text())
        counts.update(read["counts"])
        for name in SPLITS:
            tokens[name].append(read["tokens"][name])
    return counts, tokens


def shard_ranges(tokens: dict[str, list[int]], itemsize: int, shuffled: bool) -> list[Range]:
    """The shards of a store: equal ranges of keys if they are hashes, else runs of whole units."""
    ranges: list[Range] = []
    for split in SPLITS:
        if not sum(tokens[split]):
            continue
        bounds = _hash_bounds(tokens[split], itemsize) if shuffled else _unit_bounds(tokens[split], itemsize)
        for first, last in pairwise(bounds):
            ranges.append(Range(len(ranges), split, first, last - 1))
    return ranges


def _hash_bounds(tokens: list[int], itemsize: int) -> list[int]:
    shards = max(1, round(sum(tokens) * itemsize / SHARD_BYTES))
    return [(i << 64) // shards for i in range(shards + 1)]


def _unit_bounds(tokens: list[int], itemsize: int) -> list[int]:
    bounds, filled = [0], 0
    for index, count in enumerate(tokens):
        if filled and (filled + count) * itemsize > SHARD_BYTES:
            bounds.append(index << 40)
            filled = 0
        filled += count
    return [*bounds, 1 << 64]


def gather(work: Path, units: int, target: Range, dtype: np.dtype[Any]) -> None:
    """Write the shard of a range, unless that is done already."""
    done = work / "shards" / f"{target.number:05d}.json"
    if done.exists():
        return
    parts = [_slice(unit_folder(work, i), target) for i in range(units)]
    table = np.concatenate(parts)
    if not len(table):
        replace_durably(done, json.dumps({"split": target.split, "entry": None}).encode())
        return
    unit_of = np.repeat(np.arange(units), [len(p) for p in parts])
    order = np.lexsort((table["at"], unit_of, table["key"]))
    place = np.empty(len(order), np.int64)  # of each document of `table` in the shard
    place[order] = np.arange(len(order))
    lengths = table["length"][order].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    tokens = np.empty(int(lengths.sum()), dtype)
    metas, first = [], 0
    for index, part in enumerate(parts):
        if len(part):
            folder = unit_folder(work, index)
            _copy(folder / "tokens.bin", part, tokens, starts[place[first : first + len(part)]])
            metas.append(_meta(folder / "meta.arrow", part["at"]))
            first += len(part)
    meta = pa.concat_tables(metas, promote_options="permissive").take(pa.array(order))
    entry = write_shard(work / "shards", target.number, tokens, lengths, _ordered(meta))
    replace_durably(done, json.dumps({"split": target.split, "entry": entry}).encode())


def _slice(folder: Path, target: Range) -> np.ndarray:
    """The records of a unit that belong into a shard."""
    table = np.load(folder / "table.npy", mmap_mode="r")
    first = np.searchsorted(table["key"], np.uint64(target.first), side="left")
    last = np.searchsorted(table["key"], np.uint64(target.last), side="right")
    part = np.array(table[first:last])
    keep = part["split"] == SPLITS.index(target.split)
    if (folder / "repeats.npy").exists():
        keep &= ~np.isin(part["at"], np.load(folder / "repeats.npy"))
    return part[keep]


def _copy(path: Path, part: np.ndarray, tokens: np.ndarray, starts: np.ndarray) -> None:
    """Read each document of a unit to its place, in the order in which they stand in the file."""
    width = tokens.itemsize
    with path.open("rb", buffering=0) as file:
        for i in np.argsort(part["offset"], kind="stable"):
            length, start = int(part["length"][i]), int(starts[i])
            target = memoryview(tokens[start : start + length].data).cast("B")
            done = 0
            while done < length * width:
                count = os.preadv(file.fileno(), [target[done:]], int(part["offset"][i]) * width + done)
                if not count:
                    raise EOFError(f"{path}: ends at document {int(part['at'][i])}")
                done += count


def _meta(path: Path, rows: np.ndarray) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all().take(pa.array(rows.astype(np.int64)))


def _ordered(meta: pa.Table) -> pa.Table:
    """``id`` and ``bytes`` first, then the source's columns by name."""
    rest = sorted(set(meta.column_names) - {"id", "bytes"})
    return meta.select(["id", "bytes", *rest]).combine_chunks()
