"""Copies of the records for people who like dashboards. metrics.jsonl is the record, and `slm watch` reads that.

Whatever goes wrong with a copy (not installed, no network, a full quota, a service that hangs) ends that copy with one
warning and never the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from slm.train.mirror_wandb import MirrorLost, WandbMirror, scalars

if TYPE_CHECKING:
    from slm.run import Run

Say = Callable[[str], None]


class Mirror(Protocol):
    """Takes records as they are written to metrics.jsonl; raises whatever goes wrong."""

    def write(self, record: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class TensorBoardMirror:
    """Event files in ``<run>/tensorboard``; events after ``step`` that an earlier session wrote there are purged."""

    def __init__(self, run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)  # type: ignore[no-untyped-call]

    def write(self, record: dict[str, Any]) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record["step"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


class Mirrors:
    """All copies that a run asks for; with none it does nothing."""

    def __init__(self, makers: Mapping[str, Callable[[], Mirror]], say: Say) -> None:
        self._say = say
        self._standing: dict[str, Mirror] = {}
        for name, make in makers.items():
            self._guard(name, partial(self._start, name, make))

    @classmethod
    def of(cls, run: "Run", run_dir: Path, step: int, say: Say) -> Self:
        """The copies that ``run.log`` asks for. ``step``: where this session begins.

        A package that is missing is named here, before training starts, and costs only its own copy.
        """
        wanted: dict[str, tuple[str, Callable[[], Mirror]]] = {}
        if run.log.wandb.mode != "off":
            wanted["wandb"] = ("wandb", lambda: WandbMirror(run, run_dir))
        if run.log.tensorboard:
            wanted["tensorboard"] = ("tb", lambda: TensorBoardMirror(run_dir, step))
        for package, (extra, _) in wanted.items():
            if find_spec(package) is None:
                say(
                    f"log.{package} is asked for, but {package} isn't installed, so this run has no such copy: pip install 'slm[{extra}]'"
                )
        return cls({package: make for package, (_, make) in wanted.items() if find_spec(package)}, say)

    def write(self, record: dict[str, Any]) -> None:
        """Send a record to every copy that still stands."""
        for name, mirror in list(self._standing.items()):
            self._guard(name, partial(mirror.write, record))

    def close(self) -> None:
        """Give every copy a bounded time to finish."""
        for name, mirror in list(self._standing.items()):
            self._guard(name, mirror.close)
        self._standing.clear()

    def _start(self, name: str, make: Callable[[], Mirror]) -> None:
        self._standing[name] = make()

    def _guard(self, name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self._standing.pop(name, None)
            what = str(error) if isinstance(error, MirrorLost) else f"{type(error).__name__}: {error}"
            self._say(f"{name} is off for the rest of this run: {what}")
