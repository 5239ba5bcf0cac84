from __future__ import annotations

import pytest

from slm.config.errors import ConfigError
from slm.train.parallel.world import pick_device


def test_auto_finds_something_and_a_misspelt_device_is_named() -> None:
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(ConfigError, match="Did you mean 'cpu'"):
        pick_device("cpuu")
