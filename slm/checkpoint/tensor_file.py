"""safetensors files, written in one pass and read a range at a time.

The format is 8 bytes with the length of a JSON header, the header, then the tensors' bytes without gaps. The library's own writer wants
the whole file in memory first and keeps no checksums, its reader maps the file and checks nothing: for files of many gigabytes that must be
proven whole, the header is made and read here. Any reader of safetensors opens what is written.

A piece of a tensor stands under the tensor's name with the piece's shape; where it belongs is in the header's ``__metadata__`` under
``pieces``, as JSON: ``{name: {"offset": [...], "shape": [...]}}`` with the shape of the whole. A file of whole tensors has no such entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.checkpoint.manifest import CheckedFile, Entry, instead, write_checked
from slm.checkpoint.pieces import Region
from slm.config.errors import RunError

if TYPE_CHECKING:
    import torch

MAX_HEADER = 100_000_000
"""Bytes; the library's limit."""


@dataclass(frozen=True)
class Part:
    """A piece of a tensor to be written. ``raw``: gives its bytes, when their turn has come; ``dtype``: safetensors' name."""

    name: str
    dtype: str
    region: Region
    raw: Callable[[], memoryview]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.region.count * item_size(self.dtype)


@dataclass(frozen=True)
class Located:
    """A piece of a tensor in a file: ``start`` is the offset of its first byte."""

    file: CheckedFile
    start: int
    dtype: str
    region: Region


def write_tensors(path: Path, parts: Sequence[Part]) -> Entry:
    """Write a file durably. Raises `OSError` when the disk is full."""
    # the largest items first, so that each tensor begins at a multiple of its item's size
    ordered = sorted(parts, key=lambda p: (-item_size(p.dtype), p.name))

    def content() -> Any:
        yield _header(ordered)
        for part in ordered:
            yield part.raw()

    return write_checked(path, content())


def _header(parts: Sequence[Part]) -> bytes:
    metadata = {"format": "pt"}
    pieces = {p.name: {"offset": p.region.offset, "shape": p.region.whole} for p in parts if not p.region.is_whole}
    if pieces:
        metadata["pieces"] = json.dumps(pieces)
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for p in parts:
        header[p.name] = {"dtype": p.dtype, "shape": p.region.shape, "data_offsets": [end, end + p.size]}
        end += p.size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def read_header(file: CheckedFile) -> dict[str, Located]:
    """The pieces in a file by the names of their tensors. Raises `RunError` if it isn't a safetensors file."""
    try:
        length = int.from_bytes(file.read(0, 8), "little")
        if length > min(MAX_HEADER, file.entry.size - 8):
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(8, length))
        pieces = json.loads(header.pop("__metadata__", {}).get("pieces", "{}"))
        found = {}
        for name, entry in header.items():
            shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
            box = pieces.get(name, {"offset": (0,) * len(shape), "shape": shape})
            region = Region(tuple(box["shape"]), tuple(box["offset"]), shape)
            if not 0 <= start <= end <= file.entry.size - 8 - length or end - start != region.count * item_size(
                entry["dtype"]
            ):
                raise ValueError(f"{name!r} lies at bytes {start} to {end}")
            found[name] = Located(file, 8 + length + start, entry["dtype"], region)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file.path}: not a safetensors file of ours ({error}). {instead(file.folder)}") from None
    return found


@cache
def dtypes() -> dict[str, "torch.dtype"]:
    """safetensors' names of torch's types."""
    import torch

    return {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64, "BOOL": torch.bool,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
        "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    }  # fmt: skip


def dtype_name(name: str, dtype: "torch.dtype") -> str:
    """safetensors' name of a type. Raises `RunError` naming the tensor if it has none."""
    for known, its in dtypes().items():
        if its == dtype:
            return known
    raise RunError(f"{name}: safetensors has no type for {dtype}, so it can't be saved in a checkpoint.")


def item_size(dtype: str) -> int:
    """Bytes per number of a type by its safetensors name."""
    return dtypes()[dtype].itemsize
