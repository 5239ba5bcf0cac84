"""Line charts as inline SVG, drawn by matplotlib, that follow the page's light or dark colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_INK = "#123456"
"""Stands for the page's text colour; replaced by ``currentColor`` in the finished SVG."""
COLOURS = ("#2f6fde", "#e0662b", "#2a9d78", "#a3489b", "#b58900", "#6c757d")
"""Readable on white and on near-black alike."""


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


def draw(chart: Chart) -> str:
    """The chart as an ``<svg>`` element without width or height, so that the page scales it."""
    import matplotlib

    style: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "slm"}
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.4, 3.6) if chart.wide else (4.1, 2.4), layout="constrained")
        axes = figure.add_subplot()
        for line, colour in zip(chart.lines, COLOURS * 3, strict=False):
            style_of: dict[str, Any] = {"marker": "o", "markersize": 3.5} if line.marked else {}
            axes.plot(line.x, line.y, color=colour, linewidth=1.8, label=line.label, **style_of)
            if len(line.low):
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
        for i, (label, value) in enumerate(chart.references.items()):
            axes.axhline(value, color=_INK, linewidth=1, linestyle=(0, (4, 3) if i % 2 == 0 else (1, 2)))
            axes.annotate(
                f"{label}: {value:.3f}", (0, value), xycoords=("axes fraction", "data"), xytext=(4, 3),
                textcoords="offset points", ha="left", color=_INK, fontsize=9,
            )  # fmt: skip
        axes.set_xlabel(chart.x_label, color=_INK)
        axes.set_ylabel(chart.y_label, color=_INK)
        if chart.y_range:
            axes.set_ylim(*chart.y_range)
        axes.grid(True, color=_INK, alpha=0.12, linewidth=0.8)
        axes.tick_params(colors=_INK, length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        if len(chart.lines) > 1:
            axes.legend(frameon=False, labelcolor=_INK, loc="upper center" if not chart.references else "upper right")
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _inline(out.getvalue())


def _inline(svg: str) -> str:
    """Without XML header and fixed size, in the page's text colour."""
    body = svg[svg.index("<svg") :]
    head, _, rest = body.partition(">")
    kept = [a for a in head.split('" ') if not a.strip().startswith(("width=", "height="))]
    return ('" '.join(kept) + ">" + rest).replace(_INK, "currentColor")
