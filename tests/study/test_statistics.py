from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from slm.study.statistics import compare


def results(delta: float, sd: float, n: int, seed: int = 0, arms: int = 1) -> dict[str, dict[int, float]]:
    rng = np.random.default_rng(seed)
    base = rng.normal(2.0, 0.05, n)
    out = {"control": dict(enumerate(base))}
    for arm in range(arms):
        out[f"arm{arm}"] = dict(enumerate(base + delta + rng.normal(0, sd, n)))
    return out


def test_one_arm_is_the_paired_t_test() -> None:
    r = results(-0.02, 0.01, 5)
    [c], noise = compare(r, "control", margin=0.001)
    wanted = stats.ttest_rel(list(r["arm0"].values()), list(r["control"].values()))
    interval = wanted.confidence_interval(0.95)
    assert c.p == pytest.approx(wanted.pvalue)
    assert c.ci == pytest.approx((interval.low, interval.high))
    assert noise.df == 4


@pytest.mark.parametrize(
    ("delta", "sd", "verdict"),
    [(-0.3, 0.01, "win"), (0.3, 0.01, "lose"), (0.0, 0.0005, "equivalent"), (-0.01, 0.02, "undecided")],
)
def test_verdicts(delta: float, sd: float, verdict: str) -> None:
    [c], _ = compare(results(delta, sd, 4), "control", margin=0.005)
    assert c.verdict == verdict


def test_one_seed_is_undecided_whatever_the_difference() -> None:
    [c], noise = compare(results(-5, 0, 1), "control", margin=0.005)
    assert (c.verdict, c.ci, noise.sd_paired) == ("undecided", None, None)


def test_only_common_seeds_are_paired() -> None:
    [c], _ = compare({"control": {0: 1.0, 1: 2.0, 2: 3.0}, "a": {1: 1.5, 2: 2.6}}, "control", margin=0.01)
    assert c.n == 2
    assert c.delta == pytest.approx(-0.45)


def test_noise_is_pooled_over_arms() -> None:
    _, one = compare(results(0, 0.01, 3), "control", margin=0.005)
    _, many = compare(results(0, 0.01, 3, arms=6), "control", margin=0.005)
    assert (one.df, many.df) == (2, 12)
    assert many.sd_paired == pytest.approx(0.01, rel=0.6)
    assert many.minimal_detectable < 0.05


def test_holm_is_monotone_and_never_below_p() -> None:
    comparisons, _ = compare(results(-0.004, 0.005, 4, arms=5), "control", margin=0.001)
    ordered = sorted(comparisons, key=lambda c: c.p)
    assert all(c.p_adjusted >= c.p for c in ordered)
    assert [c.p_adjusted for c in ordered] == sorted(c.p_adjusted for c in ordered)
    assert ordered[0].p_adjusted == pytest.approx(min(1, 5 * ordered[0].p))


def test_no_difference_is_called_one_at_the_nominal_rate() -> None:
    """A/A: 600 studies without an effect, three arms each; a false verdict in any arm happens in about 5 %."""
    false = 0
    for seed in range(600):
        comparisons, _ = compare(results(0, 0.01, 3, seed=seed, arms=3), "control", margin=1e-6)
        false += any(c.verdict in ("win", "lose") for c in comparisons)
    assert false / 600 < 0.08


def test_identical_runs_are_equivalent() -> None:
    [c], _ = compare(results(0, 0, 3), "control", margin=0.005)
    assert c.verdict == "equivalent"
