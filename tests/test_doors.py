"""Which room may import which. A door that isn't in the table is a mistake in the plan or in the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = {"*"}
DOORS: dict[str, set[str]] = {
    "slm.config": set(),
    "slm.cost": {"config"},
    "slm.report": {"config"},
    "slm.data": {"config"},
    "slm.model": {"config", "cost", "slm_kernels"},
    "slm.checkpoint": {"config", "model"},
    "slm.generate": {"config", "model", "checkpoint"},
    "slm.eval": {"config", "model", "data", "checkpoint", "generate"},
    "slm.export": {"config", "model", "checkpoint", "cost"},
    "slm.train": {"config", "model", "data", "checkpoint", "eval", "cost"},
    "slm.run": {"config", "model", "data", "train"},
    "slm.study": {"config", "run", "train", "eval", "cost", "report"},
    "slm.planning": {"config", "run", "data", "model", "cost", "export"},
    "slm.pipeline": {"config", "run", "data", "train", "eval", "generate", "export", "checkpoint", "report", "slm"},
    "slm.cli": EVERYTHING,
    "slm.__main__": {"cli"},
    "slm.__init__": set(),
    "slm_kernels": set(),
}
"""Room -> rooms that it may import (itself always)."""
SCHEMAS = {"run": ("config", "tokenizer")}
"""Of other rooms, `run` imports schemas only."""


def room_of(path: Path) -> str:
    if "kernels" in path.relative_to(ROOT).parts[:1]:
        return "slm_kernels"
    return f"slm.{path.relative_to(ROOT / 'slm').with_suffix('').parts[0]}"


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """(module, line, only for types) of every import of ours."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"slm.{a.name}" for a in node.names] if node.module == "slm" else [node.module]
        else:
            continue
        found += [(n, node.lineno, id(node) in typing_only) for n in names if n.split(".")[0] in ("slm", "slm_kernels")]
    return found


FILES = sorted([*(ROOT / "slm").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_only_through_the_doors(path: Path) -> None:
    room = room_of(path)
    allowed = DOORS[room]
    for module, line, typing_only in imports(path):
        other = module.split(".")[1] if module.startswith("slm.") else module
        own = module.startswith(room) or (other == "slm_kernels" and room == "slm_kernels")
        version = module == "slm.__version__"
        if own or version or typing_only or allowed == EVERYTHING or other in allowed:
            continue
        raise AssertionError(f"{path.relative_to(ROOT)}:{line}: {room} imports {module}; its doors: {sorted(allowed)}")


def test_run_joins_schemas_only() -> None:
    for module, _, _ in imports(ROOT / "slm" / "run.py"):
        if module.split(".")[1] != "config":
            assert module.split(".")[2] in SCHEMAS["run"], module


def test_every_room_has_doors() -> None:
    assert {room_of(p) for p in FILES} == set(DOORS)


def test_there_are_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = path.relative_to(ROOT / ("kernels" if room_of(path) == "slm_kernels" else ".")).with_suffix("")
        module = ".".join(name.parts).removesuffix(".__init__")
        graph[module] = {
            m
            for m, _, typing_only in imports(path)
            if not typing_only and m != module and not m.startswith(module + ".")
        }
    seen: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if seen.get(module) == 2 or module not in graph:
            return
        assert seen.get(module) != 1, " -> ".join([*trail, module])
        seen[module] = 1
        for other in graph[module]:
            visit(other, (*trail, module))
        seen[module] = 2

    for module in graph:
        visit(module, ())


def test_data_and_cost_and_config_run_without_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import slm.config.compose, slm.cost.memory, slm.cost.device, slm.data.prepare, slm.data.plan, slm.report.run, slm.train.config\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_checkout_does_not_shadow_the_package_called_kernels() -> None:
    import subprocess
    import sys

    code = "import importlib.util as u; assert u.find_spec('kernels') is None; assert u.find_spec('slm_kernels')"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
