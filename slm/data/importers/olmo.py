"""OLMo's and dolma's token files: ``part-00-00000.npy``, ids without a header, and ``part-00-00000.csv.gz``.

The name notwithstanding, .npy is no NumPy file (files that are can be imported too). The table's columns, without a
header, are start, end (in tokens, end mark included), id, source file, line. OLMo-core reads such files without the table, and
finds documents by their end mark; so does slm if there is no table. Headerless files of others (nanoGPT's train.bin,
datatrove's .ds without an index) are read the same way.
"""

from __future__ import annotations

import array
import csv
import gzip
import io
import zlib
from pathlib import Path

import numpy as np

from slm.config.errors import ConfigError, RunError
from slm.data.importers.base import (
    DTYPES,
    TokenFile,
    TokenFileImporter,
    Tokens,
    Width,
    bound_by_ends,
    importer,
    tokens_in,
)
from slm.data.importers.marks import split, strip

TABLE = ".csv.gz"
NUMPY = b"\x93NUMPY"


@importer.register("olmo", paper="Soldaini et al. 2024, arXiv 2402.00159")
class Olmo(TokenFileImporter):
    """OLMo's and dolma's .npy without a header, with .csv.gz or by end marks; other headerless ids."""

    dtype: Width = "auto"
    """Width of an id; ``auto`` takes what fits .csv.gz, and must be set if there is none."""

    @classmethod
    def claims(cls, path: Path) -> bool:
        return path.name.endswith(".npy")

    def named(self, path: Path) -> Path:
        return path.with_name(path.name.removesuffix(TABLE) + ".npy") if path.name.endswith(TABLE) else path

    def read(self, path: Path, vocab_size: int) -> TokenFile:
        table = path.with_name(path.name.removesuffix(".npy") + TABLE)
        if table.is_file():
            ends, ids = _read_table(table)
            tokens = self._tokens(path, int(ends[-1]) if len(ends) else 0)
            return strip(tokens, bound_by_ends(ends, tokens.count, table, path), self, vocab_size, ids=ids)
        if self.eos is None:
            raise ConfigError(
                f"{path}: has no {table.name} beside it, so documents must be found by their end mark: name it (eos=ID)."
            )
        return split(self._tokens(path, None), self.eos, "after", self, vocab_size)

    def _tokens(self, path: Path, end: int | None) -> Tokens:
        """The tokens; ``end`` is their number, if a table says it."""
        with path.open("rb") as file:
            if file.read(len(NUMPY)) == NUMPY:
                return self._of_numpy(path)
        if self.dtype != "auto":
            return tokens_in(path, DTYPES[self.dtype])
        if end is None:
            raise ConfigError(
                f"{path}: has neither header nor table to tell the width of its ids: set dtype=u16 or dtype=u32."
            )
        fits = [d for d in DTYPES.values() if end * d.itemsize == path.stat().st_size]
        if len(fits) != 1:
            raise RunError(
                f"{path}: {path.stat().st_size} bytes aren't {end} ids, where its table ends, of 2 or 4 bytes. It is cut "
                f"off, or the table is of another file."
            )
        return tokens_in(path, fits[0])

    def _of_numpy(self, path: Path) -> Tokens:
        """A real NumPy file: its header says the width."""
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise RunError(f"{path}: begins as a NumPy file, but isn't a whole one ({error}).") from None
        dtype = {"<u2": "u16", "<u4": "u32", "<i4": "u32"}.get(found.dtype.str)
        if dtype is None or found.ndim != 1:
            raise RunError(f"{path}: holds {found.dtype} of shape {found.shape}; slm takes one row of u16, u32 or i32.")
        if self.dtype not in ("auto", dtype):
            raise ConfigError(f"{path}: dtype={self.dtype}, but its header says {found.dtype}.")
        # The header's size is not public, but what it isn't is: the data.
        return tokens_in(path, DTYPES[dtype], path.stat().st_size - found.nbytes)


def _read_table(path: Path) -> tuple[np.ndarray, list[str]]:
    """Ends (int64) and ids of all documents, which must follow each other without gaps."""
    ends, ids, row, expected = array.array("q"), [], 0, 0
    try:
        with gzip.open(path, "rb") as raw, io.TextIOWrapper(raw, "utf-8", newline="") as text:
            for row, fields in enumerate(csv.reader(text), start=1):
                start, end, name = int(fields[0]), int(fields[1]), fields[2]
                if start != expected:
                    raise RunError(
                        f"{path}, row {row}: starts at token {start}, but the one before ends at {expected}."
                    )
                expected = end
                ends.append(end)
                ids.append(name)
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise RunError(f"{path}: can't be read beyond row {row} ({error}). It is cut off or damaged.") from None
    except (ValueError, IndexError, OverflowError) as error:
        raise RunError(f"{path}, row {row}: isn't start, end, id, source, line ({error}).") from None
    return np.array(ends, np.int64), ids
