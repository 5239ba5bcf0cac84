"""Which room may import which. A door that isn't in the table is a mistake in the plan or in the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = {"*"}
DOORS: dict[str, set[str]] = {
    "slm.config": set(),
    "slm.cost": {"config"},
    "slm.report": {"config"},
    "slm.data": {"config"},
    "slm.bench": {"config", "cost", "data", "model", "run", "slm_kernels", "train"},
    "slm.model": {"config", "cost", "slm_kernels"},
    "slm.checkpoint": {"config", "model"},
    "slm.generate": {"config", "model", "checkpoint"},
    "slm.eval": {"config", "model", "data", "checkpoint", "generate"},
    "slm.export": {"config", "model", "checkpoint", "cost", "data"},
    "slm.train": {
        "config",
        "model",
        "data",
        "checkpoint",
        "eval",
        "cost",
        "export",
        "slm_kernels",
    },  # export reads a teacher from the hub; slm_kernels: Muon's iteration is an op, and impl.kernels chooses for all of them
    "slm.run": {"config", "model", "data", "train"},
    "slm.study": {"config", "run", "train", "eval", "cost", "report"},
    "slm.planning": {"config", "run", "data", "model", "train", "cost", "export"},
    "slm.pipeline": {
        "config",
        "run",
        "planning",
        "data",
        "train",
        "eval",
        "generate",
        "export",
        "checkpoint",
        "report",
        "cost",
    },
    "slm.launch": {"config"},
    "slm.watch": {"config", "report", "run", "train"},
    "slm.cli": EVERYTHING,
    "slm.__main__": {"cli"},
    "slm.__init__": set(),
    "slm_kernels": set(),
}
"""Room -> rooms that it may import (itself always, and everybody may ask `slm` for its version)."""
SCHEMAS = {"run": ("config", "tokenizer")}
"""Of other rooms, `run` imports schemas only."""
KERNELS_NEED = {"torch", "triton", "slm_kernels"}
"""`slm_kernels` is useful without slm: these and the standard library are all that it may import."""


class Import(NamedTuple):
    """One import statement, its name made absolute."""

    module: str
    line: int
    typing_only: bool

    @property
    def room(self) -> str:
        """`slm.data` of `slm.data.plan`; `slm` for the package itself (its version), other packages as they are."""
        top, *rest = self.module.split(".")
        if top != "slm" or not rest:
            return top
        exists = (ROOT / "slm" / rest[0]).is_dir() or (ROOT / "slm" / f"{rest[0]}.py").is_file()
        return f"slm.{rest[0]}" if exists else "slm"


def module_of(path: Path) -> str:
    """`slm.data.plan` of slm/data/plan.py, `slm_kernels` of kernels/slm_kernels/__init__.py."""
    base = ROOT / "kernels" if path.is_relative_to(ROOT / "kernels") else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts)


def room_of(path: Path) -> str:
    top, *rest = module_of(path).split(".")
    return f"slm.{rest[0]}" if top == "slm" else top


def imports(source: str, module: str) -> list[Import]:
    """Every import in the source of ``module``: absolute, relative, or by a literal name at run time."""
    tree = ast.parse(source)
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).split(".")[-1] == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    found: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(module.split(".")[: -node.level]) if node.level else ""
            origin = ".".join(filter(None, (origin, node.module)))
            names = [f"slm.{alias.name}" for alias in node.names] if origin == "slm" else [origin]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            literal = node.args[0] if node.args else None
            names = [literal.value] if isinstance(literal, ast.Constant) and isinstance(literal.value, str) else []
        else:
            continue
        found += [Import(name, node.lineno, id(node) in typing_only) for name in names]
    return found


def imports_of(path: Path) -> list[Import]:
    return imports(path.read_text(), module_of(path))


def closed_doors(room: str, found: list[Import]) -> list[Import]:
    """The imports that ``room`` has no door for."""
    if DOORS[room] == EVERYTHING:
        return []
    open_rooms = {room, "slm"} | {name if name == "slm_kernels" else f"slm.{name}" for name in DOORS[room]}
    ours = [i for i in found if i.module.split(".")[0] in ("slm", "slm_kernels")]
    return [i for i in ours if not i.typing_only and i.room not in open_rooms]


FILES = sorted([*(ROOT / "slm").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_only_through_the_doors(path: Path) -> None:
    room = room_of(path)
    for one in closed_doors(room, imports_of(path)):
        raise AssertionError(
            f"{path.relative_to(ROOT)}:{one.line}: {room} imports {one.module}, but its doors are {sorted(DOORS[room])}. "
            "Move the code to a room that has the door; a new door is a decision: change DOORS here and say why."
        )


@pytest.mark.parametrize(
    "statement",
    [
        "import slm.train.loop",
        "from slm import train",
        "from slm.train import loop",
        "from slm.train.loop import train",
        "from ..train import loop",
        "from .. import train",
        "def later():\n    from slm.train import loop",
        "import importlib\nimportlib.import_module('slm.train.loop')",
        "if TYPE_CHECKING:\n    pass\nelse:\n    from slm.train import loop",
    ],
)
def test_no_spelling_goes_around_the_doors(statement: str) -> None:
    [closed] = closed_doors("slm.data", imports(statement, "slm.data.plan"))
    assert closed.room == "slm.train"


@pytest.mark.parametrize(
    "statement",
    [
        "from .store import Store",
        "from slm.config import errors",
        "from slm import __version__",
        "import torch",
        "if TYPE_CHECKING:\n    from slm.train import loop",
        "import typing\nif typing.TYPE_CHECKING:\n    from slm.train import loop",
    ],
)
def test_what_is_allowed_passes(statement: str) -> None:
    assert closed_doors("slm.data", imports(statement, "slm.data.plan")) == []


def test_run_joins_schemas_only() -> None:
    for one in imports_of(ROOT / "slm" / "run.py"):
        if one.room.startswith("slm.") and one.room != "slm.config" and not one.typing_only:
            assert one.module.split(".")[2] in SCHEMAS["run"], one.module


def test_every_room_has_doors() -> None:
    assert {room_of(p) for p in FILES} == set(DOORS)


def test_there_are_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        module = module_of(path).removesuffix(".__init__")
        graph[module] = {
            i.module
            for i in imports_of(path)
            if not i.typing_only and i.module != module and not i.module.startswith(module + ".")
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


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) == "slm_kernels"], ids=lambda p: p.name)
def test_kernels_need_torch_alone(path: Path) -> None:
    packages = {i.module.split(".")[0] for i in imports_of(path)}
    assert packages - set(sys.stdlib_module_names) <= KERNELS_NEED


def test_data_and_cost_and_config_run_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import slm.config.compose, slm.cost.memory, slm.cost.device, slm.data.prepare, slm.data.plan, slm.report.run, slm.train.config\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_checkout_does_not_shadow_the_package_called_kernels() -> None:
    code = "import importlib.util as u; assert u.find_spec('kernels') is None; assert u.find_spec('slm_kernels')"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
