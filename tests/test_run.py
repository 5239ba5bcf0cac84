"""What joins the sections of a run."""

from __future__ import annotations

import pytest
from support import tiny_config

from slm.config.errors import ConfigError
from slm.run import Run, check_name


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/../b", "a//b", "/tmp/a", "a/", "a\nb", "a\0b"])
def test_a_name_that_is_no_directory_under_runs_is_refused(name: str) -> None:
    run = Run(**tiny_config(name=name))  # what was trained under such a name can still be read,
    with pytest.raises(ConfigError, match="can't be the name of a directory"):
        check_name(run)
    check_name(Run(**tiny_config(name=name, log__dir="elsewhere")))  # and gone on with


def test_a_name_is_as_long_as_a_file_name_may_be() -> None:
    with pytest.raises(ConfigError, match=r"has 256 bytes.*at most 255"):
        check_name(Run(**tiny_config(name="a/" + "é" * 128)))
    check_name(Run(**tiny_config(name="é" * 127 + "/" + "b" * 255)))


def test_more_threads_than_there_can_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"impl.threads=100000 is more than"):
        Run(**tiny_config(impl__threads=100_000))
    assert Run(**tiny_config(impl__threads=1024)).impl.threads == 1024
