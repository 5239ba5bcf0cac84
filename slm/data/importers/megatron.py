"""Megatron-LM's indexed datasets: ``x.bin`` (ids, no header) and ``x.idx``, all little-endian::

    9 bytes "MMIDIDX\\0\\0", u64 version 1, u8 code of the ids' type, u64 sequences, u64 document bounds
    i32 length of every sequence; i64 its place in .bin, in bytes; i64 first sequence of every document, and the last's end

A document is usually one sequence; it ends with the tokenizer's end-of-document id if it was preprocessed with
``--append-eod``. The layout is that of Megatron-core's `indexed_dataset.py` (Shoeybi et al. 2019, arXiv 1909.08053), which NeMo,
Megatron-DeepSpeed, GPT-NeoX and datatrove's `MegatronDocumentTokenizer` write, too.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from slm.config.errors import RunError
from slm.data.importers.base import DTYPES, TokenFile, TokenFileImporter, importer, tokens_in
from slm.data.importers.marks import strip

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
WIDTHS = {4: "u32", 8: "u16"}
"""Codes of int32 (whose ids are not negative, so that they read the same as uint32) and uint16."""
OTHERS = {1: "uint8", 2: "int8", 3: "int16", 5: "int64", 6: "float64", 7: "float32"}


@importer.register("megatron", paper="Shoeybi et al. 2019, arXiv 1909.08053")
class Megatron(TokenFileImporter):
    """Megatron-LM's .bin with .idx."""

    @classmethod
    def claims(cls, path: Path) -> bool:
        index = path.with_suffix(".idx")
        if path.suffix != ".bin" or not index.is_file():
            return False
        with index.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC

    def named(self, path: Path) -> Path:
        return path.with_suffix(".bin") if path.suffix == ".idx" else path

    def read(self, path: Path, vocab_size: int) -> TokenFile:
        index = path.with_suffix(".idx")
        width, lengths, places, documents = _read_index(index)
        tokens = tokens_in(path, DTYPES[width])
        cuts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        if (lengths < 0).any():
            raise RunError(f"{index}: sequence {int(np.argmax(lengths < 0))} has a negative length. It is damaged.")
        if (wrong := cuts[:-1] * tokens.dtype.itemsize != places).any():
            at = int(np.argmax(wrong))
            raise RunError(
                f"{index}: sequence {at} should lie at byte {cuts[at] * tokens.dtype.itemsize}, not {places[at]}."
            )
        if cuts[-1] != tokens.count:
            raise RunError(
                f"{path}: has {tokens.count} tokens, but {index.name} promises {cuts[-1]}. It is cut off, or other."
            )
        if len(documents) < 1 or documents[0] != 0 or documents[-1] != len(lengths) or (np.diff(documents) < 0).any():
            raise RunError(
                f"{index}: the bounds of documents don't rise from 0 to {len(lengths)} sequences. It is damaged."
            )
        bounds = cuts[documents]
        return strip(tokens, (bounds[:-1], bounds[1:]), self, vocab_size)


def _read_index(path: Path) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Width of the ids; lengths and places of sequences; first sequences of documents."""
    if not path.is_file():
        raise RunError(f"{path}: is missing. Without it the documents' bounds are unknown.")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER.size)
        if head[: len(MAGIC)] != MAGIC:
            old = " (It is fairseq's older format: convert it with Megatron-LM.)" if head[:6] == b"TNTIDX" else ""
            raise RunError(f"{path}: doesn't begin with MMIDIDX, so it is no index of Megatron-LM.{old}")
        if len(head) < HEADER.size:
            raise RunError(f"{path}: ends within its header. It is cut off.")
        _, version, code, sequences, documents = HEADER.unpack(head)
        if version != 1:
            raise RunError(f"{path}: is version {version} of its format; slm reads version 1.")
        if code not in WIDTHS:
            what = OTHERS.get(code, "an unknown type")
            raise RunError(
                f"{path}: ids are of type {code} ({what}); slm reads uint16 and int32. Preprocess the text again."
            )
        expected = HEADER.size + 12 * sequences + 8 * documents
        if size == expected + sequences > expected:
            raise RunError(
                f"{path}: has a mode for every sequence: it is a multimodal dataset, which slm doesn't read."
            )
        if size != expected:
            raise RunError(
                f"{path}: {sequences} sequences and {documents} bounds need {expected} bytes; it has {size}."
            )
        lengths = np.fromfile(file, "<i4", sequences)
        places = np.fromfile(file, "<i8", sequences)
        return WIDTHS[code], lengths, places, np.fromfile(file, "<i8", documents)
