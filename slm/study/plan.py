"""A study as declared, and the runs that it consists of.

An *arm* is the base recipe with overrides of its own. Every arm is run once per seed; a seed fixes the
initial weights and the order of the data, so that runs of the same seed read the same token stream and
can be compared in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pydantic
import yaml

from slm.config.base import Config
from slm.config.compose import compose, validate
from slm.config.errors import ConfigError, suggest
from slm.run import Run

SUFFIXES = (".yaml", ".yml")


class Study(Config):
    """A study file."""

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9._-]+$")
    question: str = ""
    recipe: str
    """The base: a recipe by name or path."""
    overrides: tuple[str, ...] = ()
    """For all arms."""
    control: str
    """The arm that the others are compared with."""
    arms: dict[str, tuple[str, ...]] = pydantic.Field(min_length=2)
    """Name -> overrides."""
    seeds: tuple[int, ...] = pydantic.Field((0, 1, 2), min_length=1)
    margin: float = pydantic.Field(0.005, gt=0)
    """Differences in bits per byte below this don't matter in practice."""
    confidence: float = pydantic.Field(0.95, gt=0.5, lt=1)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.control not in self.arms:
            raise ConfigError(
                f"study {self.name}: control {self.control!r} is no arm. {suggest(self.control, self.arms)}"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(
                f"study {self.name}: a seed occurs twice in {list(self.seeds)}; the runs would be the same."
            )
        return self


@dataclass(frozen=True)
class Planned:
    """One run of a study."""

    arm: str
    seed: int
    run: Run
    dir: Path


def read_study(path: Path | str) -> Study:
    """Read a study file. Raises `ConfigError`."""
    file = Path(path)
    if not file.is_file() or file.suffix not in SUFFIXES:
        there = sorted(p.as_posix() for p in Path("recipes/studies").glob("*.yaml"))
        raise ConfigError(f"There is no study file {str(path)!r}. {suggest(str(path), there)}")
    try:
        data = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML. {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: a study is a mapping with name, recipe, control and arms.")
    return validate(Study, {str(k): v for k, v in data.items()})


def study_dir(study: Study, root: Path | str = "runs/studies") -> Path:
    """Where a study's runs and report are kept."""
    return Path(root) / study.name


def plan_study(study: Study, *, threads: int | None = None, root: Path | str = "runs/studies") -> list[Planned]:
    """All runs, seed by seed, each in a directory named after its identity.

    A run that another study (or an earlier version of this file) made under the same name of study and with the
    same identity is the same run, and isn't made again.
    """
    planned = []
    for seed in study.seeds:
        for arm, overrides in study.arms.items():
            fixed = [
                f"train.seed={seed}",
                f"data.seed={seed}",
                "finish.samples=0",
                "finish.export=[]",
                "finish.report=false",
            ]
            own = compose(study.recipe, [*study.overrides, *overrides, *fixed], schema=Run).config
            folder = study_dir(study, root) / own.identity
            run = own.with_(
                name=f"{study.name}-{arm}-seed{seed}",
                log=own.log.with_(dir=str(folder)),
                impl=own.impl.with_(threads=threads or own.impl.threads),
                notes=own.notes,
            )
            planned.append(Planned(arm, seed, run, folder))
    identities = {p.run.identity: p for p in planned}
    if len(identities) != len(planned):
        twins = next((p, identities[p.run.identity]) for p in planned if identities[p.run.identity] is not p)
        raise ConfigError(f"study {study.name}: arms {twins[0].arm!r} and {twins[1].arm!r} are the same experiment.")
    return planned
