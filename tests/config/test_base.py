"""Errors name the keys of the class that holds the odd one, however deep it lies."""

from __future__ import annotations

from typing import Annotated

import pydantic
import pytest

from slm.config.base import Config, Seed, explain
from slm.config.compose import validate
from slm.config.errors import ConfigError


class Inner(Config):
    half_life: int = 1


class Item(Config):
    begin: int = pydantic.Field(0, alias="from")
    inner: Inner = Inner()


class Outer(Config):
    average: Inner | None = None
    marked: Annotated[Inner, "a note"] | None = None
    mapped: dict[str, Inner] | None = None
    several: tuple[Item, ...] = ()
    listed: list[Inner] = []


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"average": {"half_live": 1}}, "average.half_live"),
        ({"marked": {"half_live": 1}}, "marked.half_live"),
        ({"mapped": {"mine": {"half_live": 1}}}, "mapped.mine.half_live"),
        ({"several": [{}, {"inner": {"half_live": 1}}]}, "several.1.inner.half_live"),
        ({"listed": [{"half_live": 1}]}, "listed.0.half_live"),
    ],
)
def test_the_nearest_key_is_one_of_the_class_that_was_meant(data: dict[str, object], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Outer, data)
    assert str(caught.value) == f"Unknown key {path!r}. Did you mean 'half_life'?"


def test_the_outermost_class_names_its_own() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'average'"):
        validate(Outer, {"avrage": {}})


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_a_seed_that_no_generator_takes_is_refused_with_its_bounds(seed: int) -> None:
    class Seeded(Config):
        seed: Seed = 0

    assert Seeded(seed=(1 << 63) - 1).seed == (1 << 63) - 1
    with pytest.raises(pydantic.ValidationError) as raised:
        Seeded(seed=seed)
    assert f"seed: Input should be {'greater' if seed < 0 else 'less'} than or equal to" in str(
        explain(raised.value, Seeded)
    )
