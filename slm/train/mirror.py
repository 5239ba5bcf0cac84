"""The wandb mirror. metrics.jsonl is the record; this is a copy for people who like dashboards.

Whatever goes wrong with it (not installed, no network, a full quota) ends the mirror with one warning and
never the run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slm.train.config import Wandb


class Mirror:
    """Sends records to Weights & Biases under an id that a resumed run takes up again."""

    def __init__(
        self,
        config: Wandb,
        run_dir: Path,
        name: str,
        identity: str,
        experiment: dict[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self._warn, self._run = warn, None
        if config.mode == "off":
            return

        def start() -> None:
            import wandb

            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                mode="online" if config.mode == "online" else "offline",
                dir=str(run_dir),
                name=name,
                id=f"{name}-{identity}".replace("/", "-"),
                resume="allow",
                config=experiment,
            )

        self._guard(start)

    def write(self, record: dict[str, Any]) -> None:
        """Send a record, if the mirror still stands."""
        if self._run is not None:
            prefix = f"{record['kind']}/"
            values = {prefix + k: v for k, v in record.items() if k not in ("kind", "step")}
            self._guard(lambda: self._run.log(values, step=record["step"]))  # type: ignore[union-attr]

    def close(self) -> None:
        if self._run is not None:
            self._guard(lambda: self._run.finish())  # type: ignore[union-attr]

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._run = None
            self._warn(f"wandb is off for the rest of this run: {type(error).__name__}: {error}")
