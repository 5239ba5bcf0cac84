"""A trace of some steps, for chrome://tracing or Perfetto, and the operators that take most time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slm.train.parallel.world import World

AFTER = 3
"""Steps before the profile, at least: the first ones set up libraries and compile."""


class Profiler:
    """Profiles ``steps`` steps from the fourth of the session on, or ``after`` more; call `step` after each."""

    def __init__(self, steps: int, folder: Path, world: World, say: Callable[[str], None], after: int = 0) -> None:
        self.left, self.steps, self.folder, self.world, self.say = AFTER + after + steps, steps, folder, world, say
        self._trace: Any = None

    def step(self) -> None:
        """A step was taken."""
        if self.left <= 0:
            return
        self.left -= 1
        if self.left == self.steps:
            self._begin()
        elif self.left == 0:
            self._end()

    def close(self) -> None:
        """End early: what was profiled so far is written."""
        if self._trace is not None:
            self._end()

    def _begin(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        cuda = self.world.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        self._trace = profile(activities=activities, record_shapes=True, profile_memory=True)
        self._trace.start()

    def _end(self) -> None:
        trace, self._trace = self._trace, None
        trace.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"rank{self.world.rank}.json.gz"
        trace.export_chrome_trace(str(file))
        by = "self_cuda_time_total" if self.world.device.type == "cuda" else "self_cpu_time_total"
        table = trace.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=40)
        (self.folder / f"rank{self.world.rank}.txt").write_text(table)
        self.say(
            f"Profiled {self.steps} steps: {file} (open it in https://ui.perfetto.dev), and a table of operators beside it."
        )


def profiler(steps: int, folder: Path, world: World, say: Callable[[str], None], after: int = 0) -> Profiler:
    """A profiler of so many steps; of 0, one that does nothing."""
    made = Profiler(steps, folder, world, say, after)
    if not steps:
        made.left = 0
    return made
