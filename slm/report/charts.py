"""Line charts as inline SVG, drawn by matplotlib, that follow the page's light or dark colours.

A page changes its colours with the reader's setting, and a picture drawn in fixed ones would not follow. So the
finished SVG names colours as the page does: text is ``currentColor`` and curve *n* is ``var(--curve-n)``, with a
fixed colour behind it for where there is no page around (the README).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

_INK = "#123456"
"""Stands for the page's text colour; replaced by ``currentColor`` in the finished SVG."""
COLOURS = ("#2f6fde", "#e0662b", "#2a9d78", "#a3489b", "#b58900", "#6c757d")
"""Curves in this order, readable on white; base.html.j2 has lighter ones for a dark page under the same numbers."""
MARK = "#d1495b"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LABEL_GAP = 0.065
"""Least distance between two labels at the right edge, as a share of the axis."""


@dataclass(frozen=True)
class Line:
    """A curve. ``low`` and ``high``, if given, bound a band around it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    marked: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart: its axes' names with units, its curves, and horizontal reference lines (label -> value)."""

    x_label: str
    y_label: str
    lines: list[Line]
    references: dict[str, float] = field(default_factory=dict)
    wide: bool = True
    y_range: tuple[float, float] | None = None
    marks: Sequence[float] = ()
    """Places on the x axis where something happened: short ticks at the bottom."""


def draw(chart: Chart) -> str:
    """The chart as an ``<svg>`` element without width or height, so that the page scales it."""
    import matplotlib

    style: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "slm"}
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.4, 3.8) if chart.wide else (4.1, 2.4), layout="constrained")
        axes = figure.add_subplot()
        for line, colour in zip(chart.lines, COLOURS * 3, strict=False):
            _curve(axes, line, colour)
        if chart.y_range:
            axes.set_ylim(*chart.y_range)
        _references(axes, chart.references)
        if len(chart.marks):
            axes.plot(
                chart.marks,
                [0.02] * len(chart.marks),
                "|",
                color=MARK,
                markersize=9,
                transform=axes.get_xaxis_transform(),
            )
        _frame(axes, chart)
        out = io.StringIO()
        nothing: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _inline(out.getvalue(), f"{chart.y_label} over {chart.x_label}")


def standalone(chart: Chart) -> str:
    """The chart as a file of its own: on white, in fixed colours, since there is no page around it."""
    head, _, body = draw(chart).partition(">")
    return f'{head} style="color:#1c2330;background:#fff">{body}'


def _curve(axes: Any, line: Line, colour: str) -> None:
    """One curve, or one dot where there is a single point."""
    alone = len(line.x) == 1
    marks: dict[str, Any] = {"marker": "o", "markersize": 7 if alone else 3.5} if line.marked or alone else {}
    axes.plot(line.x, line.y, color=colour, linewidth=0 if alone else 1.8, label=line.label, **marks)
    if len(line.low):
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)


def _references(axes: Any, references: dict[str, float]) -> None:
    """Dashed lines across, each named in the margin to its right, where no curve runs through the name."""
    low, high = axes.get_ylim()
    names = sorted(references, key=lambda name: references[name])
    places = spread([references[name] for name in names], LABEL_GAP * (high - low))
    for i, (name, place) in enumerate(zip(names, places, strict=True)):
        axes.axhline(references[name], color=_INK, linewidth=1, linestyle=(0, (4, 3) if i % 2 == 0 else (1, 2)))
        axes.annotate(
            f"{name}  {references[name]:.3f}", (1, place), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", ha="left", va="center", color=_INK, fontsize=9,
        )  # fmt: skip


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Rising values moved apart to at least ``gap``; those that touch keep their middle."""
    groups: list[tuple[float, int]] = []  # (middle, members)
    for value in values:
        groups.append((value, 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (b, m), (a, n) = groups.pop(), groups.pop()
            groups.append(((a * n + b * m) / (n + m), n + m))
    return [middle + gap * (i - (n - 1) / 2) for middle, n in groups for i in range(n)]


def _frame(axes: Any, chart: Chart) -> None:
    """Axis names, a light grid, no box, and a legend where there is more than one curve."""
    axes.set_xlabel(chart.x_label, color=_INK)
    axes.set_ylabel(chart.y_label, color=_INK)
    axes.grid(True, color=_INK, alpha=0.12, linewidth=0.8)
    axes.tick_params(colors=_INK, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if len(chart.lines) > 1:
        axes.legend(frameon=False, labelcolor=_INK, loc="upper right")


def _inline(svg: str, described: str) -> str:
    """Ready for a page: scalable, in the page's colours and fonts, with a name for who can't see it.

    Several charts share one page, so ids get a prefix of their own.
    """
    own = "c" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    head, _, body = svg[svg.index("<svg") :].partition(">")
    kept = [a for a in head.split('" ') if not a.strip().startswith(("width=", "height="))]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{own}-', body)
    body = re.sub(r'(url\(|href=")#', rf"\1#{own}-", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", FONT, body).replace(_INK, "currentColor")
    for i, colour in enumerate(COLOURS):
        body = body.replace(colour, f"var(--curve-{i}, {colour})")
    start = '" '.join(kept)
    return f'{start} role="img" aria-label="{escape(described)}">{body}'
