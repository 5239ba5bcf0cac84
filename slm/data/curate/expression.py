"""The tree behind a filter, and its two evaluations: for one document, and for a whole table at once.

A truth is one of three: ``TRUE``, ``FALSE``, or ``UNKNOWN`` where a value that is needed is missing. They are the
numbers 1, -1 and 0, so that *and* is the minimum, *or* the maximum and *not* the negative (Kleene's logic,
which SQL has too), for single numbers and for arrays alike.

Both evaluations look at the same cells: null and NaN are missing; times are texts in ISO form; integers meet
floats as floats. A comparison of a text with a number is an error, never false. Nothing is short-circuited, so that
an error doesn't depend on which other part of the filter already decided.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from slm.data.curate.cells import NUMBER, TEXT, TRUTH, Cells, bools, kind_of

TRUE, UNKNOWN, FALSE = 1, 0, -1

BUILTINS = ("id", "text", "chars", "bytes", "length")

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ARROW = {"==": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal"}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


class Mismatch(Exception):
    """A cell is of a kind that the filter can't compare as asked."""


@dataclass(frozen=True)
class Column:
    """A column, or a field inside of one: ``("metadata", "score")``."""

    path: tuple[str, ...]

    @cached_property
    def name(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class BuiltIn(Column):
    """A column that every document has, whatever its source: one of `BUILTINS`."""


@dataclass(frozen=True)
class Literal:
    """A constant of the filter's text."""

    value: float | str | bool

    @cached_property
    def kind(self) -> str:
        return TRUTH if isinstance(self.value, bool) else TEXT if isinstance(self.value, str) else NUMBER


Cell = Callable[[Column], Any]
"""The value of a column in one document, as `cell` gives it."""
Table = Callable[[Column], Cells]


class Node(Protocol):
    """A part of a filter that has a truth."""

    def truth(self, get: Cell) -> int:
        """For one document."""

    def truths(self, get: Table) -> np.ndarray:
        """For every row of a table: int8."""


@dataclass(frozen=True)
class Compare:
    """``int_score >= 3``; one side at least is a column."""

    left: Column
    op: str
    right: Column | Literal

    @classmethod
    def of(cls, left: Column | Literal, op: str, right: Column | Literal) -> "Compare":
        """Puts the column on the left. Raises `ValueError` if neither is one."""
        if isinstance(left, Column):
            return cls(left, op, right)
        if isinstance(right, Column):
            return cls(right, _MIRRORED[op], left)
        raise ValueError("it compares two constants")

    def truth(self, get: Cell) -> int:
        a = get(self.left)
        b = self.right.value if isinstance(self.right, Literal) else get(self.right)
        if a is None or b is None:
            return UNKNOWN
        if not (type(a) is type(b) is str):
            self._check(kind_of(a), kind_of(b), a, b)
        if isinstance(a, float) or isinstance(b, float):
            a, b = _float(a), _float(b)
        return TRUE if _OPERATORS[self.op](a, b) else FALSE

    def truths(self, get: Table) -> np.ndarray:
        a = get(self.left)
        b = self._constant(a) if isinstance(self.right, Literal) else get(self.right)
        known = a.known & b.known
        if a.kind is None or b.kind is None or not known.any():
            return np.zeros(len(known), np.int8)
        x, y = a.values, b.values
        first = int(known.argmax())
        self._check(a.kind, b.kind, x[first], y if isinstance(self.right, Literal) else y[first])
        if a.kind == TEXT:
            return _known(bools(getattr(pc, _ARROW[self.op])(x, y)), known)
        if any(np.asarray(v).dtype.kind == "f" for v in (x, y)):
            x, y = (np.asarray(v, np.float64) for v in (x, y))
        return _known(_OPERATORS[self.op](x, y), known)

    def _constant(self, beside: Cells) -> Cells:
        assert isinstance(self.right, Literal)
        return Cells(self.right.kind, self.right.value, beside.known)

    def _check(self, left: str, right: str, a: Any, b: Any) -> None:
        if left != right:
            a = a.as_py() if isinstance(a, pa.Scalar) else a
            other = f"{right} ({b!r})" if isinstance(self.right, Literal) else f"column {self.right.name!r} ({right})"
            raise Mismatch(f"column {self.left.name!r} holds {left} (for example {_short(a)}), compared with {other}")
        if left not in (NUMBER, TEXT, TRUTH):
            raise Mismatch(f"column {self.left.name!r} holds {left}, which filters don't compare")
        if left == TRUTH and self.op not in ("==", "!="):
            raise Mismatch(f"column {self.left.name!r} holds true or false, which have no order: use == or !=")


@dataclass(frozen=True)
class Member:
    """``dump in ["CC-MAIN-2024-10", ...]``; all values are of one kind."""

    column: Column
    values: tuple[Literal, ...]

    def truth(self, get: Cell) -> int:
        return max(Compare(self.column, "==", value).truth(get) for value in self.values)

    def truths(self, get: Table) -> np.ndarray:
        cells = get(self.column)
        if cells.kind == TEXT and self.values[0].kind == TEXT:
            wanted = pa.array([v.value for v in self.values], cells.values.type)
            return _known(bools(pc.is_in(cells.values, value_set=wanted)), cells.known)
        each = [Compare(self.column, "==", value).truths(get) for value in self.values]
        return np.max(np.stack(each), axis=0)


@dataclass(frozen=True)
class Match:
    """``url ~ "regex"``: Python's regular expressions, found anywhere in the text."""

    column: Column
    pattern: re.Pattern[str]

    def truth(self, get: Cell) -> int:
        value = get(self.column)
        if value is None:
            return UNKNOWN
        self._check(kind_of(value), value)
        return TRUE if self.pattern.search(value) else FALSE

    def truths(self, get: Table) -> np.ndarray:
        cells = get(self.column)
        if cells.kind is None:
            return np.zeros(len(cells.known), np.int8)
        if cells.kind != TEXT:
            self._check(cells.kind, cells.example())
        # Arrow's own regular expressions are RE2's: another language. Each distinct text is looked at once.
        coded = cells.values.dictionary_encode()
        found = np.array([bool(self.pattern.search(v)) for v in coded.dictionary.to_pylist()] or [False])
        return _known(found[coded.indices.fill_null(0).to_numpy(zero_copy_only=False)], cells.known)

    def _check(self, kind: str, value: Any) -> None:
        if kind != TEXT:
            raise Mismatch(f"column {self.column.name!r} holds {kind} (for example {value!r}), and ~ is for text")


@dataclass(frozen=True)
class IsNull:
    """``column is null``: the only question that a missing value answers."""

    column: Column

    def truth(self, get: Cell) -> int:
        return TRUE if get(self.column) is None else FALSE

    def truths(self, get: Table) -> np.ndarray:
        return np.where(get(self.column).known, FALSE, TRUE).astype(np.int8)


@dataclass(frozen=True)
class Not:
    """``not x``"""

    inner: Node

    def truth(self, get: Cell) -> int:
        return -self.inner.truth(get)

    def truths(self, get: Table) -> np.ndarray:
        return -self.inner.truths(get)


@dataclass(frozen=True)
class All:
    """``x and y and ...``"""

    parts: tuple[Node, ...]

    def truth(self, get: Cell) -> int:
        return min([part.truth(get) for part in self.parts])

    def truths(self, get: Table) -> np.ndarray:
        return np.min(np.stack([part.truths(get) for part in self.parts]), axis=0)


@dataclass(frozen=True)
class Any_:
    """``x or y or ...``"""

    parts: tuple[Node, ...]

    def truth(self, get: Cell) -> int:
        return max([part.truth(get) for part in self.parts])

    def truths(self, get: Table) -> np.ndarray:
        return np.max(np.stack([part.truths(get) for part in self.parts]), axis=0)


def _known(found: Any, known: np.ndarray) -> np.ndarray:
    """Truths of an array of booleans, UNKNOWN where a value was missing."""
    return np.where(known, np.where(found, TRUE, FALSE), UNKNOWN).astype(np.int8)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _short(value: Any) -> str:
    shown = repr(value.item() if isinstance(value, np.generic) else value)
    return shown if len(shown) <= 40 else shown[:37] + "..."
