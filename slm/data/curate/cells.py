"""The cells of columns as filters see them: numbers, texts and truths, or missing."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

NUMBER, TEXT, TRUTH = "a number", "text", "true or false"


@dataclass(frozen=True)
class Cells:
    """A column of a table: its kind (None if no cell has a value), its values, and which of them are there.

    ``values`` is a numpy array of numbers or booleans, or an arrow array of texts.
    """

    kind: str | None
    values: Any
    known: np.ndarray

    def example(self) -> Any:
        """The first value that is there, for an error message."""
        value = self.values[int(self.known.argmax())]
        return value.as_py() if isinstance(value, pa.Scalar) else value.item()


def cell(value: Any) -> Any:
    """A value as filters see it: None if it is missing, times as ISO text."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    return value.isoformat() if isinstance(value, dt.date | dt.time) else value


def kind_of(value: Any) -> str:
    """``NUMBER``, ``TEXT``, ``TRUTH``, or the name of a type that filters don't compare."""
    if isinstance(value, bool):
        return TRUTH
    if isinstance(value, int | float):
        return NUMBER
    return TEXT if isinstance(value, str) else f"values of type {type(value).__name__}"


def cells(column: pa.ChunkedArray | pa.Array) -> Cells:
    """A column of a table as filters see it."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind: str | None
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    known = ~bools(array.is_null(nan_is_null=True))
    if pa.types.is_temporal(array.type) and not pa.types.is_duration(array.type):
        if pa.types.is_timestamp(array.type):  # Python's times have microseconds
            array = array.cast(pa.timestamp("us", array.type.tz), safe=False)
        array = pa.array([cell(v) for v in array.to_pylist()], pa.string())
    if pa.types.is_boolean(array.type):
        kind, values = TRUTH, bools(array.fill_null(False))
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        kind, values = NUMBER, array.fill_null(0).to_numpy(zero_copy_only=False)
    elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        kind, values = TEXT, array
    else:
        kind, values = f"values of type {array.type}", array
    return Cells(kind if known.any() else None, values, known)


def bools(array: pa.Array) -> np.ndarray:
    """An arrow array of truths as numpy's; missing ones are false."""
    return array.fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
