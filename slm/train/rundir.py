"""The run directory: one experiment, one process (group) at a time."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from slm.config.errors import ConfigError, RunError
from slm.config.files import replace_durably
from slm.config.identity import differences
from slm.config.yaml import dump_yaml
from slm.train.config import what_counts

if TYPE_CHECKING:
    from slm.run import Run


def run_dir_of(run: "Run") -> Path:
    """Where a run lives: ``log.dir``, or ``runs/<name>``."""
    return Path(run.log.dir) if run.log.dir else Path("runs") / run.name


@contextmanager
def claimed(run: "Run", run_dir: Path) -> Iterator[None]:
    """Hold the run directory for this experiment.

    Raises:
        ConfigError: it holds another experiment; the differing fields are shown.
        RunError: another process is training there.
    """
    with _lock_file(run_dir) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"{run_dir} is in use: another process is training there. Wait for it, or set log.dir or name."
            ) from None
        refuse_other_experiment(run, run_dir)
        try:
            lock.truncate(0)
            print(
                socket.gethostname(), os.getpid(), file=lock, flush=True
            )  # for `slm watch`, where it can't see the lock
            replace_durably(run_dir / "config.yaml", dump_yaml(run.model_dump(mode="json"), run.notes).encode())
        except OSError as error:
            raise _unwritable(run_dir, error) from None
        yield


def _lock_file(run_dir: Path) -> IO[str]:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        return (run_dir / ".lock").open("a")
    except OSError as error:
        raise _unwritable(run_dir, error) from None


def _unwritable(run_dir: Path, error: OSError) -> RunError:
    return RunError(
        f"The run can't be kept in {run_dir}: {error.strerror or error}. Make room or give it another place (log.dir=...); checkpoints that "
        f"are there stay as they are."
    )


def refuse_other_experiment(run: "Run", run_dir: Path) -> None:
    """Raise `ConfigError` if the directory's config.yaml defines another experiment than ``run``."""
    file = run_dir / "config.yaml"
    if not file.exists() or not (run_dir / "checkpoints").exists():
        return  # nothing was trained yet that could be mixed up
    old, new = _experiment_in(file, type(run)), run.experiment()
    changed = differences({section: old.get(section) for section in new}, new)
    if changed:
        raise ConfigError(
            f"{run_dir} holds another experiment. It differs in {'; '.join(changed)}. Give this one its own place "
            f"(name=... or log.dir=...), or remove {run_dir} to start over."
        )


def _experiment_in(file: Path, schema: "type[Run]") -> dict[str, Any]:
    """What a config.yaml defines, with the defaults of settings that are newer than the file."""
    try:
        plain = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        plain = None
    if not isinstance(plain, dict):
        raise RunError(
            f"{file} is damaged: it holds no experiment. Each checkpoint beside it has a copy: put the one of the newest, "
            f"{file.parent}/checkpoints/step-.../config.yaml, in its place, and start again."
        )
    try:
        return schema(**plain).experiment()
    except (
        ConfigError,
        ValueError,
        TypeError,
    ):  # settings that are no longer there, or parts of plugins that aren't loaded
        return dict(plain) | {"train": what_counts(plain.get("train") or {})}
