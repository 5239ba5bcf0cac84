"""Writers of other frameworks' token files, number by number from their formats' descriptions, and what must come of them."""

from __future__ import annotations

import csv
import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slm.data.importers import TokenFile

EOS, BOS, VOCAB = 99, 98, 100
DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]


def ended(documents: Sequence[list[int]], mark: int = EOS) -> list[list[int]]:
    """Documents with a mark after each."""
    return [[*document, mark] for document in documents]


def packed(ids: Sequence[int], width: int = 2) -> bytes:
    return b"".join(int(i).to_bytes(width, "little") for i in ids)


def flat(documents: Sequence[list[int]]) -> list[int]:
    return [i for document in documents for i in document]


def write_datatrove(path: Path, documents: Sequence[list[int]], width: int = 2, metadata: bool = True) -> Path:
    path.write_bytes(packed(flat(documents), width))
    ends = np.cumsum([len(d) for d in documents]).tolist()
    path.with_name(path.name + ".index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    if metadata:
        path.with_name(path.name + ".metadata").write_text(f"gpt2|{width}\n{sum(map(len, documents))}\n0 T")
    return path


def write_olmo(path: Path, documents: Sequence[list[int]], width: int = 2, ids: Sequence[str] | None = None) -> Path:
    """The table is written if there are ids."""
    path.write_bytes(packed(flat(documents), width))
    if ids is not None:
        with gzip.open(path.with_name(path.name.removesuffix(".npy") + ".csv.gz"), "wt", newline="") as file:
            rows, at = csv.writer(file), 0
            for number, (name, document) in enumerate(zip(ids, documents, strict=True)):
                rows.writerow([at, at + len(document), name, "data/a.json.gz", number])
                at += len(document)
    return path


def write_megatron(path: Path, documents: Sequence[Sequence[list[int]]], code: int = 8) -> Path:
    """Documents of sequences of ids."""
    width = {8: 2, 4: 4}[code]
    sequences = [s for document in documents for s in document]
    path.write_bytes(packed(flat(sequences), width))
    places = np.cumsum([0, *(len(s) * width for s in sequences)])[:-1].tolist()
    bounds = np.cumsum([0, *(len(d) for d in documents)]).tolist()
    path.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(sequences), len(bounds))
        + struct.pack(f"<{len(sequences)}i", *map(len, sequences))
        + struct.pack(f"<{len(places)}q", *places)
        + struct.pack(f"<{len(bounds)}q", *bounds)
    )
    return path


def write_llmc(path: Path, ids: Sequence[int], magic: int = 20240520, version: int = 1, width: int = 2) -> Path:
    path.write_bytes(struct.pack("<256i", magic, version, len(ids), *[0] * 253) + packed(ids, width))
    return path


def check(file: TokenFile, documents: Sequence[list[int]]) -> None:
    """The file's documents are these, and every token is accounted for."""
    assert [file.read(i).tolist() for i in range(len(file))] == list(documents)
    assert file.tokens == sum(map(len, documents))
    assert file.tokens + sum(file.specials.values()) == file.count
    assert file.starts.dtype == file.ends.dtype == np.int64
    assert (file.starts[1:] >= file.ends[:-1]).all()
    assert file.byte_offset + file.count * file.dtype.itemsize == file.tokens_path.stat().st_size
