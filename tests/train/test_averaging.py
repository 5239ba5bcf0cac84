"""Averages of weights."""

from __future__ import annotations

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm.config.durations import Duration
from slm.config.errors import ConfigError, RunError
from slm.train.averaging import Averaging, Ema, average_weights, shares_of_decay


def random(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 4, generator=generator), "b": torch.randn(5, generator=generator)}


def moved(weights: dict[str, torch.Tensor], seed: int) -> None:
    for name, w in weights.items():
        w.copy_(random(seed)[name])


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_an_average_of_what_was_seen_and_nothing_else(decay: float) -> None:
    weights = random(0)
    ema = Ema(weights, decay)
    for n in range(1, 9):
        moved(weights, n)
        ema.update()
        shares = decay ** np.arange(n - 1, -1, -1)
        right = sum(s * random(i)["a"].double() for i, s in enumerate(shares / shares.sum(), 1))
        torch.testing.assert_close(ema.average["a"].double(), right, rtol=1e-5, atol=1e-6)


def test_a_skipped_step_is_not_seen() -> None:
    weights, others = random(0), random(0)
    ema, other = Ema(weights, 0.9), Ema(others, 0.9)
    ema.update(torch.tensor(1.0))
    for n in range(4):
        moved(weights, n)
        ema.update(torch.tensor(0.0))
        ema.update(torch.tensor(1.0))
        moved(others, n)
        other.update()
    assert all(torch.equal(ema.average[n], other.average[n]) for n in weights)


def test_swapped_in_and_out_bit_for_bit() -> None:
    weights = random(0)
    ema = Ema(weights, 0.9)
    with ema.swapped_in():
        assert torch.equal(weights["a"], random(0)["a"])
    for n in range(3):
        moved(weights, n)
        ema.update()
    average = {n: t.clone() for n, t in ema.average.items()}
    with ema.swapped_in():
        assert all(torch.equal(weights[n], average[n]) for n in weights)
    with pytest.raises(KeyError), ema.swapped_in():
        raise KeyError
    assert all(torch.equal(weights[n], random(2)[n]) for n in weights)
    assert all(torch.equal(ema.average[n], average[n]) for n in weights)


def test_through_a_checkpoint_bit_for_bit() -> None:
    weights = random(0)
    whole, first, second = Ema(weights, 0.9), Ema(weights, 0.9), Ema(weights, 0.9)
    for n in range(6):
        moved(weights, n)
        whole.update()
        (first if n < 3 else second).update()
        if n == 2:
            second.restore({k: v.clone() for k, v in first.state().items()})
    assert all(torch.equal(whole.average[n], second.average[n]) for n in weights)
    with pytest.raises(RunError, match="no moving average 'b/ema' that fits"):
        second.restore({k: v for k, v in first.state().items() if k != "b/ema"})


def test_parameters_keep_their_gradients_and_graph_out_of_it() -> None:
    model = torch.nn.Linear(3, 2)
    ema = Ema(dict(model.named_parameters()), 0.5)
    ema.update()
    with ema.swapped_in():
        model(torch.ones(1, 3)).sum().backward()
    assert model.weight.grad is not None
    assert not ema.average["weight"].requires_grad


def test_a_half_life_is_the_same_at_every_batch_size() -> None:
    for text, steps in (("10 steps", 10), ("10k tokens", 10), ("2 tokens_per_param", 20), ("5%", 50)):
        decay = Averaging(half_life=text).per_step(total=1000, batch_tokens=1000, params=10_000)
        assert decay**steps == pytest.approx(0.5), text
    small = Averaging(half_life="10k tokens").per_step(total=1, batch_tokens=500, params=1)
    assert small**20 == pytest.approx(0.5)
    assert Averaging(decay=0.99).per_step(total=1, batch_tokens=1, params=1) == 0.99


@pytest.mark.parametrize("given", [{}, {"decay": 0.9, "half_life": Duration.parse("5%")}])
def test_half_life_or_decay(given: dict) -> None:
    with pytest.raises(ConfigError, match="exactly one of half_life and decay"):
        Averaging(**given)


def test_a_half_life_of_nothing_or_of_a_time() -> None:
    with pytest.raises(ConfigError, match="half_life=0 steps: it must be more than nothing"):
        Averaging(half_life="0 steps").per_step(total=10, batch_tokens=10, params=10)
    with pytest.raises(pydantic.ValidationError, match=r"half_life[\s\S]*'2 h' is a time"):
        Averaging(half_life="2h")


# ---- checkpoints ------------------------------------------------------------------------------------------


def test_means() -> None:
    models = [random(n) for n in range(3)]
    torch.testing.assert_close(average_weights(iter(models))["a"], sum(m["a"] for m in models) / 3)
    weighed = average_weights(models, [1, 1, 2])
    torch.testing.assert_close(weighed["b"], (models[0]["b"] + models[1]["b"] + 2 * models[2]["b"]) / 4)
    assert torch.equal(average_weights([models[0]])["a"], models[0]["a"])
    assert average_weights([{"a": torch.ones(2, dtype=torch.bfloat16)}])["a"].dtype == torch.bfloat16


def test_what_does_not_go_together() -> None:
    with pytest.raises(RunError, match="Checkpoint 2 doesn't fit the first one; first difference: 'b'"):
        average_weights([random(0), {"a": random(1)["a"]}])
    with pytest.raises(RunError, match="first difference: 'a'"):
        average_weights([random(0), random(1) | {"a": torch.ones(2)}])
    for models, shares in (([], None), ([random(0)], [1, 1]), ([random(0)] * 3, [1, 1]), ([random(0)], [-1])):
        with pytest.raises(ConfigError, match="as many positive shares"):
            average_weights(models, shares)


@given(st.sampled_from(["linear", "1-sqrt", "cosine"]), st.integers(1, 40))
def test_shares_imitate_a_decay(shape: str, count: int) -> None:
    """Steps of size 1 between checkpoints: in the average each counts as the factor that the decay has at its beginning."""
    from slm.train.schedule.shapes import fall

    shares = shares_of_decay(shape, count)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    for i in range(count):  # the step before checkpoint i is in all checkpoints from i on
        assert sum(shares[i:]) == pytest.approx(fall(shape, i / count, 0.0))  # type: ignore[arg-type]


def test_only_decays_that_end_at_zero_can_be_imitated() -> None:
    with pytest.raises(ConfigError, match="There is no decay 'exponential'"):
        shares_of_decay("exponential", 4)
