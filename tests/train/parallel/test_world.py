from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slm.config.errors import ConfigError
from slm.train.parallel.world import pick_device

WORKER = Path(__file__).with_name("joining_worker.py")


def test_auto_finds_something_and_a_misspelt_device_is_named() -> None:
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(ConfigError, match="Did you mean 'cpu'"):
        pick_device("cpuu")


@pytest.mark.slow
def test_processes_join_again_though_one_comes_late(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, str(WORKER), str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {f"join-{n}-rank-{r}": f"[{2 * n + 1}.0, 2.0]" for n in range(3) for r in range(2)}
