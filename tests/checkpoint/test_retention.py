from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slm import checkpoint
from slm.checkpoint import Retention, Saver
from slm.config.errors import ConfigError

WEIGHTS = {"model": {"w": torch.ones(2)}}


def kept(
    run_dir: Path, retention: Retention, steps: int = 10, spare: int = 0, **named: Callable[[int], int]
) -> list[int]:
    """Save steps 1 ... and list what stands. Held-out bits are fewest at step 3, and not known at even steps."""
    path = run_dir / "checkpoints" / f"step-{spare:08d}"
    saver = Saver(run_dir, retention, asynchronous=False, spare=path if spare else None, **named)
    for step in range(1, steps + 1):
        bits = {"heldout_bpb": 1 + abs(step - 3) / 10} if step % 2 else {}
        saver.save(step, WEIGHTS, {"step": step, "tokens": 10 * step, **bits}, "", b"{}")
        if step == 4:
            checkpoint.pin(saver.committed, "mine")  # type: ignore[arg-type]
    return [c.step for c in checkpoint.listing(run_dir)]


def test_every_reason_keeps_and_a_pin_always_does(tmp_path: Path) -> None:
    assert kept(tmp_path / "a", Retention(last=1)) == [4, 10]
    assert kept(tmp_path / "b", Retention(last=3)) == [4, 8, 9, 10]
    assert kept(tmp_path / "c", Retention(last=1, best=2)) == [1, 3, 4, 10]
    # the first of each stretch of 4 steps, but not of the one that training begins in
    assert kept(tmp_path / "d", Retention(last=1, every="4 steps"), stretch=lambda step: step // 4) == [4, 8, 10]
    assert kept(tmp_path / "e", Retention(last=1, best=1, every="3 steps"), stretch=lambda step: step // 3) == [
        3,
        4,
        6,
        9,
        10,
    ]


def test_the_last_one_before_steps_that_were_skipped_stays(tmp_path: Path) -> None:
    saver = Saver(tmp_path, Retention(last=2), asynchronous=False)
    for step in range(1, 7):
        saver.save(step, WEIGHTS, {"step": step, "skipped_in_a_row": max(0, step - 3)}, "", b"{}")
    assert [c.step for c in checkpoint.listing(tmp_path)] == [3, 5, 6]
    assert checkpoint.newest_sound(tmp_path) == tmp_path / "checkpoints" / "step-00000003"
    saver.save(7, WEIGHTS, {"step": 7, "skipped_in_a_row": 0}, "", b"{}")
    assert [c.step for c in checkpoint.listing(tmp_path)] == [6, 7]
    assert checkpoint.newest_sound(tmp_path / "nowhere") is None


def test_what_was_read_whole_stays_until_two_newer_stand(tmp_path: Path) -> None:
    kept(tmp_path, Retention(last=1), steps=1)
    saver = Saver(tmp_path, Retention(last=1), asynchronous=False, spare=checkpoint.latest(tmp_path))
    for step, standing in ((2, [1, 2]), (3, [3])):
        saver.save(step, WEIGHTS, {"step": step}, "", b"{}")
        assert [c.step for c in checkpoint.listing(tmp_path)] == standing


def test_an_unpinned_one_goes_with_the_next_save(tmp_path: Path) -> None:
    assert kept(tmp_path, Retention(last=1), steps=5) == [4, 5]
    path = tmp_path / "checkpoints" / "step-00000004"
    assert checkpoint.unpin(path)
    assert not checkpoint.unpin(path)
    Saver(tmp_path, Retention(last=1), asynchronous=False).save(6, WEIGHTS, {}, "", b"{}")
    assert [c.step for c in checkpoint.listing(tmp_path)] == [6]


def test_a_number_means_the_newest_and_a_period_needs_its_steps(tmp_path: Path) -> None:
    assert Retention.model_validate(3) == Retention(last=3)
    with pytest.raises(ValueError, match="greater than 0"):
        Retention(last=0)
    with pytest.raises(ValueError, match="go together"):
        Saver(tmp_path, Retention(every="5 steps"))
    with pytest.raises(ValueError, match="go together"):
        Saver(tmp_path, Retention(), stretch=lambda step: step)


def test_only_a_checkpoint_can_be_pinned(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no checkpoint"):
        checkpoint.pin(tmp_path, "x")
