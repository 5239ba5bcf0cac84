"""Curves in a terminal, of braille characters: each holds 2 x 4 dots, so 60 columns by 10 rows show 120 x 40."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

COLOURS = ("bright_blue", "orange3", "green3", "magenta", "yellow", "white")
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of the dot at (column, row) of a braille character, whose code starts at U+2800."""
AXIS = 8
"""Columns for the numbers at the left."""
BEGINNING = 0.05
"""Share of the x range whose values don't set the y range: the first steps lie so high that they would flatten the rest."""


@dataclass(frozen=True)
class Series:
    """A curve; ``colour`` is an index into `COLOURS`. ``dotted``: points that are not joined."""

    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dotted: bool = False


def plot(title: str, series: Sequence[Series], width: int, height: int, x_end: str = "") -> Text:
    """A chart ``width`` columns wide, with ``height`` rows of dots between a title line and an x axis that ends at ``x_end``.

    Points that are no finite number are left out; those above the range are cut off at its top.
    """
    columns = max(4, width - AXIS - 1)
    points = [[(x, y) for x, y in zip(s.x, s.y, strict=True) if math.isfinite(y)] for s in series]
    out = Text(f"{'':{AXIS}} {title}\n", no_wrap=True)
    everything = [p for curve in points for p in curve]
    if not everything:
        return out.append("\n" * (height - 1) + f"{'':{AXIS}} nothing yet", style="dim")
    x_low, x_high = min(x for x, _ in everything), max(x for x, _ in everything)
    low, high = value_range(everything, x_low, x_high)
    canvas = Canvas(columns, height)
    for curve, s in zip(points, series, strict=True):
        at = [(_share(x, x_low, x_high), _share(y, low, high)) for x, y in curve]
        canvas.dots(at, s.colour) if s.dotted else canvas.line(at, s.colour)
    labels = {0: high, height // 2: high - (high - low) * (height // 2 + 0.5) / height, height - 1: low}
    for row in range(height):
        out.append(f"{number(labels[row]) if row in labels else '':>{AXIS}} ", style="dim")
        out.append_text(canvas.row(row))
        out.append("\n")
    return out.append(f"{'':{AXIS}} {x_end:>{columns}}", style="dim")


def value_range(points: Sequence[tuple[float, float]], x_low: float, x_high: float) -> tuple[float, float]:
    """The y range to show: that of all points after the beginning."""
    later = [y for x, y in points if x >= x_low + BEGINNING * (x_high - x_low)]
    low, high = min(later), max(later)
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def number(value: float) -> str:
    """A label of at most `AXIS` - 1 columns: 12.3k, 3.142, 1.2e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 1e4:
        for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= factor:
                return f"{value / factor:.3g}{letter}"
    return f"{value:.4g}" if abs(value) >= 1e-2 else f"{value:.1e}"


class Canvas:
    """Braille dots in rows and columns of characters; a character has the colour of the last dot in it."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._bits = [[0] * columns for _ in range(rows)]
        self._colours = [[0] * columns for _ in range(rows)]

    def line(self, points: Sequence[tuple[float, float]], colour: int) -> None:
        """Join points given in shares of the canvas, from its lower left. Many points in a column of dots are drawn as
        their mean, so that a noisy curve stays a curve."""
        across, sums = 2 * self.columns - 1, dict[int, tuple[float, int]]()
        for x, y in points:
            total, n = sums.get(column := round(x * across), (0.0, 0))
            sums[column] = (total + y, n + 1)
        means = [(column, total / n * (4 * self.rows - 1)) for column, (total, n) in sorted(sums.items())]
        for (x, y), (x2, y2) in zip(means, means[1:] or means, strict=False):
            steps = max(1, x2 - x, round(abs(y2 - y)))
            for i in range(steps + 1):
                self.dot(round(x + (x2 - x) * i / steps), round(y + (y2 - y) * i / steps), colour)

    def dots(self, points: Sequence[tuple[float, float]], colour: int) -> None:
        """Draw points alone, each two dots wide and high."""
        for x, y in points:
            column, row = round(x * (2 * self.columns - 1)), round(y * (4 * self.rows - 1))
            for beside in (0, 1):
                for above in (0, 1):
                    self.dot(column + beside, row + above, colour)

    def dot(self, x: int, y: int, colour: int) -> None:
        """Set the dot at column ``x`` and ``y`` rows of dots above the bottom; nothing outside the canvas."""
        top = 4 * self.rows - 1 - y
        if 0 <= x < 2 * self.columns and 0 <= top < 4 * self.rows:
            self._bits[top // 4][x // 2] |= DOTS[x % 2][top % 4]
            self._colours[top // 4][x // 2] = colour

    def row(self, index: int) -> Text:
        text = Text()
        for bits, colour in zip(self._bits[index], self._colours[index], strict=True):
            text.append(chr(0x2800 + bits) if bits else " ", style=COLOURS[colour % len(COLOURS)])
        return text


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.0
