"""Every kernel compiled for GPUs that are not here: nothing spilled, nothing in fp64, loads as wide as they were.

Where the installed Triton is the one that compiled.json was written with, facts are compared with that table: a change
that costs registers or narrows loads must be looked at, and the table written anew (cross_compile.py --update).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kernel_checks import MISSING

SCRIPT = Path(__file__).with_name("cross_compile.py")
TABLE = json.loads(SCRIPT.with_name("compiled.json").read_text())
MATRIX = ("linear_lse", "newton_schulz", "attention")
"""Ops whose products must run on matrix units."""
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING or "-"),
    pytest.mark.skipif(sys.platform != "linux", reason="Triton's compilers are Linux programs"),
]


def compiled(*arguments: str) -> dict[str, Any]:
    """What cross_compile.py prints, run without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def must_hold(name: str, facts: dict[str, int]) -> None:
    assert facts["spills"] == 0, f"{name} spills"
    assert facts["fp64"] == 0, f"{name} computes in fp64"
    assert facts["shared"] <= 227 * 1024, f"{name} needs {facts['shared']} bytes of shared memory"
    assert facts.get("serialised", 0) == 0, f"{name}: matrix instructions wait for each other"
    if name.startswith(MATRIX):
        assert facts["matrix"] > 0, f"{name} doesn't use matrix units"


def must_be_as_in_the_table(target: str, found: dict[str, Any]) -> None:
    if found["triton"] != TABLE["triton"]:
        pytest.skip(f"the table is of Triton {TABLE['triton']}, here is {found['triton']}")
    for name, facts in found[target].items():
        assert name in TABLE[target], f"{name} is not in the table"
        known = TABLE[target][name]
        assert facts["registers"] <= known["registers"] + 8, f"{name}: {facts} was {known}"
        if target.startswith("sm"):
            assert facts["loads_narrow"] <= known["loads_narrow"], f"{name}: {facts} was {known}"
            assert facts["loads_128"] >= known["loads_128"], f"{name}: {facts} was {known}"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_every_kernel_compiles_well(target) -> None:
    found = compiled("--target", target)
    for name, facts in found[target].items():
        must_hold(name, facts)
    assert set(found[target]) == set(TABLE[target])
    must_be_as_in_the_table(target, found)


def test_pointwise_kernels_load_128_bits_at_a_time() -> None:
    """Said of the table, which the test above holds against the compiler."""
    for name, facts in TABLE["sm_90"].items():
        if name.startswith(("rms_norm", "activation", "cross_entropy_", "linear_kl")):
            assert facts["loads_128"] > 0, name
            assert facts["loads_narrow"] == 0, name


def test_a_table_row_that_got_worse_is_noticed() -> None:
    name = next(iter(TABLE["sm_90"]))
    for change in ({"registers": 300}, {"loads_narrow": 9}, {"loads_128": 0}):
        worse = {"triton": TABLE["triton"], "sm_90": {name: TABLE["sm_90"][name] | change}}
        with pytest.raises(AssertionError):
            must_be_as_in_the_table("sm_90", worse)


@pytest.mark.slow
def test_fp64_scalars_stay_scalars() -> None:
    """torch.compile may hand Python floats over as fp64: everything that they touch would be computed in fp64."""
    for only in ("rms_norm 2048 residual", "qk_norm_rope 0.6b", "cross_entropy_ everything", "linear_kl jsd"):
        for name, facts in compiled("--only", only, "--floats", "fp64")["sm_90"].items():
            assert facts["fp64"] == 0, name
