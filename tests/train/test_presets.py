"""The options of the group ``train``."""

from __future__ import annotations

import pytest
import yaml

from slm.config.paths import conf_dirs, group_options
from slm.train.config import Train
from slm.train.schedule import Constant


@pytest.mark.parametrize("name", group_options("train"))
def test_every_option_is_a_valid_section_that_says_what_it_is_for(name: str) -> None:
    text = next(p for d in conf_dirs() if (p := d / "train" / f"{name}.yaml").exists()).read_text()
    assert text.startswith("# ")
    train = Train(**yaml.safe_load(text))
    assert train.schedule.factor(0, total=10_000, batch_tokens=train.batch_tokens, params=10**8) > 0
    assert name in (train.optim.part_name, train.schedule.part_name, "trunk")


def test_schedule_free_has_no_decay() -> None:
    text = next(p for d in conf_dirs() if (p := d / "train" / "schedule_free.yaml").exists()).read_text()
    assert isinstance(Train(**yaml.safe_load(text)).schedule, Constant)
