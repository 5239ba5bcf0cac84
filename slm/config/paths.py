"""Where conf/ and recipes/ are: beside the package in a checkout, inside it in a wheel; the user's come first."""

from __future__ import annotations

import os
from pathlib import Path

from slm.config.errors import ConfigError, suggest

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(name: str) -> Path:
    """The directory ``conf`` or ``recipes`` that comes with slm."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def recipe_dirs() -> list[Path]:
    """Directories that are searched for recipes, in order: ./recipes, those in $SLM_RECIPES, the shipped ones."""
    own = [Path("recipes"), *(Path(p) for p in os.environ.get("SLM_RECIPES", "").split(os.pathsep) if p)]
    found: list[Path] = []
    for path in [*own, shipped("recipes")]:
        if path.is_dir() and path.resolve() not in found:
            found.append(path.resolve())
    return found


def conf_dirs() -> list[Path]:
    """Directories that hold config groups: the user's recipe directories, then the shipped conf/."""
    return [*recipe_dirs(), shipped("conf").resolve()]


def list_recipes() -> dict[str, Path]:
    """Recipes by name; an earlier directory hides a later one."""
    found: dict[str, Path] = {}
    for folder in recipe_dirs():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find_recipe(recipe: str) -> Path:
    """The file of a recipe, given by name or by path. Raises `ConfigError` listing those that exist."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path.resolve()
        raise ConfigError(f"The recipe file {recipe!r} does not exist.")
    known = list_recipes()
    if recipe not in known:
        there = ", ".join(known) or "none"
        raise ConfigError(
            f"There is no recipe {recipe!r}. {suggest(recipe, known)} Recipes here: {there}; or give a path to a .yaml file."
        )
    return known[recipe]


def group_options(group: str) -> list[str]:
    """Names that can be chosen for a config group such as ``model``."""
    return sorted({p.stem for folder in conf_dirs() for p in (folder / group).glob("*.yaml")})
