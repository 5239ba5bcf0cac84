"""From paired results to verdicts.

The estimate is the mean over seeds of (arm - control), each pair on the same data. Its noise is pooled over
all arms of the study: every arm's differences vary around their own mean by about as much, and with three
seeds an arm alone knows its spread too badly. Intervals and p-values are Student's t with the pooled degrees
of freedom; p-values are corrected for the number of arms (Holm 1979).

Verdict, for a measure where less is better:

============  ============================================================================================
equivalent    the interval of the two one-sided tests lies within +-margin (Schuirmann 1987)
win / lose    the confidence interval lies below / above 0, and the corrected p-value agrees
undecided     neither: more seeds are needed
============  ============================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from scipy import stats


@dataclass(frozen=True)
class Comparison:
    """An arm against the control. ``ci`` and ``p`` are None with fewer than two pairs in the whole study."""

    name: str
    n: int
    mean: float
    delta: float
    ci: tuple[float, float] | None
    p: float | None
    p_adjusted: float | None
    verdict: str


@dataclass(frozen=True)
class Noise:
    """The study's noise: SD of a paired difference, its degrees of freedom, and the smallest difference that
    this many seeds find with 80 % power."""

    sd_paired: float | None
    df: int
    minimal_detectable: float | None


def compare(
    results: Mapping[str, Mapping[int, float]], control: str, *, margin: float, confidence: float = 0.95
) -> tuple[list[Comparison], Noise]:
    """Compare every arm with the control. ``results``: arm -> seed -> measure (less is better)."""
    base = results[control]
    pairs = {
        arm: [v[s] - base[s] for s in sorted(v.keys() & base.keys())] for arm, v in results.items() if arm != control
    }
    noise = _noise(pairs, confidence)
    found = [_compare(arm, d, results[arm], noise, margin, confidence) for arm, d in pairs.items() if d]
    adjusted = _holm([c.p for c in found])
    return [
        replace(c, p_adjusted=p, verdict=_verdict(c, p, noise, margin, confidence))
        for c, p in zip(found, adjusted, strict=True)
    ], noise


def _noise(pairs: Mapping[str, list[float]], confidence: float) -> Noise:
    """SD pooled over arms: sqrt(sum of squares around each arm's own mean / sum of (n - 1))."""
    df = sum(len(d) - 1 for d in pairs.values() if d)
    if df < 1:
        return Noise(None, 0, None)
    squares = sum(sum((x - sum(d) / len(d)) ** 2 for x in d) for d in pairs.values() if d)
    sd = math.sqrt(squares / df)
    n = min(len(d) for d in pairs.values() if d)
    t = stats.t.ppf((1 + confidence) / 2, df) + stats.t.ppf(0.8, df)
    return Noise(sd, df, float(t * sd / math.sqrt(n)))


def _compare(
    arm: str, d: list[float], values: Mapping[int, float], noise: Noise, margin: float, confidence: float
) -> Comparison:
    mean, delta = sum(values.values()) / len(values), sum(d) / len(d)
    if noise.sd_paired is None:
        return Comparison(arm, len(d), mean, delta, None, None, None, "undecided")
    se = max(noise.sd_paired / math.sqrt(len(d)), 1e-12)  # identical runs have no spread at all
    half = float(stats.t.ppf((1 + confidence) / 2, noise.df)) * se
    p = 2 * float(stats.t.sf(abs(delta) / se, noise.df))
    return Comparison(arm, len(d), mean, delta, (delta - half, delta + half), p, None, "")


def _verdict(c: Comparison, p_adjusted: float | None, noise: Noise, margin: float, confidence: float) -> str:
    if c.ci is None or p_adjusted is None or noise.sd_paired is None:
        return "undecided"
    half = float(stats.t.ppf(confidence, noise.df)) * max(noise.sd_paired / math.sqrt(c.n), 1e-12)
    if abs(c.delta) + half < margin:
        return "equivalent"
    if p_adjusted < 1 - confidence:
        return "win" if c.delta < 0 else "lose"
    return "undecided"


def _holm(p_values: list[float | None]) -> list[float | None]:
    """Step-down correction; None stays None."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * p))
        adjusted[i] = running
    return adjusted
