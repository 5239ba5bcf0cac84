from __future__ import annotations

import pytest

from slm.config.errors import ConfigError
from slm.train.schedule import Cosine, WarmupStableDecay


def curve(part, total: int = 100) -> list[float]:
    return [part.factor(s, total=total, batch_tokens=1000, params=10_000) for s in range(total)]


@pytest.mark.parametrize("shape", ["linear", "1-sqrt", "cosine"])
def test_wsd_rises_stays_and_falls(shape: str) -> None:
    f = curve(WarmupStableDecay(warmup="10 steps", decay="20%", shape=shape))
    assert f[0] == pytest.approx(1 / 11)
    assert f[:11] == sorted(f[:11])
    assert all(x == 1 for x in f[10:80])
    assert f[80:] == sorted(f[80:], reverse=True)
    assert 0 < f[-1] < 0.06


def test_wsd_linear_values_and_floor() -> None:
    f = curve(WarmupStableDecay(warmup="0 steps", decay="4 steps", floor=0.5), total=10)
    assert f == pytest.approx([1] * 6 + [0.9, 0.8, 0.7, 0.6])


def test_warmup_and_decay_in_tokens() -> None:
    a = curve(WarmupStableDecay(warmup="10k tokens", decay="1 tokens_per_param"))
    assert a == curve(WarmupStableDecay(warmup="10 steps", decay="10 steps"))


def test_longer_than_the_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="exceed the budget of 10 steps"):
        curve(WarmupStableDecay(warmup="6 steps", decay="6 steps"), total=10)


def test_cosine_ends_at_its_floor() -> None:
    f = curve(Cosine(warmup="10 steps", floor=0.1))
    assert max(f) == pytest.approx(1, abs=1e-3)
    assert f[-1] == pytest.approx(0.1, abs=0.01)
