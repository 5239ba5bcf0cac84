from __future__ import annotations

import pydantic
import pytest

from slm.config.durations import Duration, InSteps
from slm.config.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("100 steps", 100),
        ("1 step", 1),
        ("2M tokens", 2000),
        ("1.5k tokens", 2),
        ("20 tokens_per_param", 200),
        ("5%", 50),
    ],
)
def test_to_steps(text: str, steps: int) -> None:
    assert Duration.parse(text).to_steps(batch_tokens=1000, params=10_000, total_steps=1000) == steps


@pytest.mark.parametrize("text", ["100 steps", "1500000 tokens", "2.5%", "2 h", "30 s", "0.1 tokens_per_param"])
def test_text_comes_back(text: str) -> None:
    duration = Duration.parse(text)
    assert Duration.parse(str(duration)) == duration


def test_a_time_is_no_length() -> None:
    lengths = pydantic.TypeAdapter(InSteps)
    assert lengths.validate_python("1.5B tokens") == Duration(1.5e9, "tokens")
    assert lengths.dump_python(Duration.parse("5%"), mode="json") == "5%"
    with pytest.raises(pydantic.ValidationError, match="'2 h' is a time"):
        lengths.validate_python("2h")


def test_time_has_seconds_and_no_steps() -> None:
    assert Duration.parse("2h").seconds == 7200
    with pytest.raises(ConfigError, match="can't be turned into steps"):
        Duration.parse("2h").to_steps(batch_tokens=1, params=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100", "with a unit"), (100, "with a unit"), ("5 stesp", "steps"), ("x steps", "no duration")],
)
def test_bad_durations_are_explained(text: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Duration.parse(text)
