"""Peak memory is this process's own, not its parent's."""

from __future__ import annotations

import subprocess
import sys

from slm.cost.resident import peak_resident_bytes

CODE = """
import sys
from slm.cost.resident import peak_resident_bytes
before = peak_resident_bytes()
held = bytearray(b"x" * (60 << 20))
print(before, peak_resident_bytes() - before)
"""


def test_a_large_parents_peak_is_not_the_childs() -> None:
    large = bytearray(b"x" * (300 << 20))
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, grown = map(int, done.stdout.split())
    assert before < 100 << 20 < len(large) < peak_resident_bytes()
    assert 60 << 20 <= grown < 150 << 20
