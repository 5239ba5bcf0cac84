from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from slm.cli.export import register
from slm.config.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["--to", "hf,hf", "--out", "x"], "one directory"), (["--to", "hff"], "Did you mean 'hf'"), (["--to", ""], "no such target")],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_before_anything_is_read(arguments: list[str], why: str) -> None:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, ["nowhere", *arguments])
    assert isinstance(result.exception, ConfigError)
    assert why in str(result.exception)
    assert not list(Path().iterdir())
