"""Work shared out to processes that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from slm.config.errors import RunError

Tick = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Task:
    """A function called as ``function(workshop, *arguments, tick)`` in a worker."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]


def run_tasks(
    tasks: Sequence[Task],
    *,
    workers: int,
    make: Callable[[], Any],
    tick: Tick,
    finished: Callable[[int], None] = lambda _: None,
) -> None:
    """Run all tasks, in this process if there is one worker. Raises what the first failing task raises.

    Args:
        make: makes what a worker keeps between tasks (a picklable function without arguments).
        tick: called here with what the tasks report.
        finished: called here with the number of a task that is done.
    """
    if workers <= 1 or len(tasks) <= 1:
        workshop = make()
        for number, task in enumerate(tasks):
            task.function(workshop, *task.arguments, tick)
            finished(number)
        return
    context = multiprocessing.get_context("spawn")  # threads and forks don't go together
    reports: Any = context.Queue()
    with ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=context, initializer=_start, initargs=(make, reports, os.getpid())
    ) as pool:
        futures = {pool.submit(_run, task): number for number, task in enumerate(tasks)}
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                _drain(reports, tick)
                for future in done:
                    future.result()
                    finished(futures[future])
        except BrokenProcessPool:
            raise RunError(
                "A worker process ended without a word: most likely the machine ran out of memory. What was finished is "
                "kept; run the same command again with fewer workers."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            _drain(reports, tick)


_workshop: Any = None
_report: Tick = lambda *_: None  # noqa: E731


def _start(make: Callable[[], Any], reports: Any, parent: int) -> None:
    """Prepare a worker."""
    global _workshop, _report
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker is one thread; the processes are the parallelism

    def report(documents: int, tokens: int, size: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # killed parents send no signal; an orphan that went on would write beside the next attempt
        reports.put((documents, tokens, size))

    _workshop, _report = make(), report


def _run(task: Task) -> None:
    task.function(_workshop, *task.arguments, _report)


def _drain(reports: Any, tick: Tick) -> None:
    while True:
        try:
            tick(*reports.get_nowait())
        except queue.Empty:
            return
