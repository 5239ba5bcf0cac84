"""Every verb explains itself without loading what it would need to work. (How fast `slm --help` is: test_cli.py.)"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import typer

from slm.cli.main import app

HEAVY = ("torch", "numpy", "hydra", "transformers", "matplotlib")
"""pydantic isn't among them: typer itself loads it for any command that takes arguments."""


def verbs(command: Any, *above: str) -> list[tuple[str, ...]]:
    """("train",), ("study", "run"), ...: all that can be called."""
    below = getattr(command, "commands", None)
    return [above] if below is None else [v for name, c in below.items() for v in verbs(c, *above, name)]


def test_no_verb_loads_torch_to_print_its_help() -> None:
    all_verbs = verbs(typer.main.get_command(app))
    assert {("train",), ("study", "run"), ("data", "plan")} <= set(all_verbs)
    code = (
        "import sys\n"
        "from slm.cli.main import app\n"
        f"for verb in {all_verbs!r}:\n"
        "    try:\n"
        "        app(args=[*verb, '--help'], prog_name='slm')\n"
        "    except SystemExit as done:\n"
        "        assert not done.code, verb\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not loaded, f'{verb}: --help imports {loaded}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: slm ") == len(all_verbs)
