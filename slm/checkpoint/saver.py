"""Saving while training goes on.

At a step boundary every process copies its part of the tensors to host memory and trains on; a thread writes the copy. Rank 0 then makes
the directory a checkpoint::

    all ranks    wait for the save before | rank 0 makes the directory | agree that it is there | copy | return
    thread       write own files, flush, leave ``part-00001.json``
    rank 0's     wait for all parts -> manifest -> rename -> pointer -> remove what is superseded
    the others'  wait until the directory has its name, or is gone (then the save failed)

**Why our own files and not torch.distributed.checkpoint.** Its safetensors storage writes the shards but no list of them, no checksums and
nothing that says a shard is missing, so a manifest, verified range reads and the atomic commit had to be ours anyway; what would remain
of it is the planner, which exchanges pickled plans by collectives at each save and hangs with them if a process dies. FSDP2's shards
are boxes whose place is a matter of ten lines (`pieces`), and a reader that joins boxes needs no plan.

**Why the ranks agree through files.** A collective of the training's group from a second thread would interleave with the training's own
in another order on each rank, which deadlocks. A group of its own would do, but has to be kept alive beside the training, and a rank that
dies in a save leaves the others in it until a timeout of the group. The shards are on a file system that all ranks see in any case, or no
checkpoint could be read back. The single collective, `any`, is called by the training thread at the step boundary, where all ranks are.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from slm.checkpoint.config import Retention
from slm.checkpoint.layout import aside, folder_of, latest, step_name
from slm.checkpoint.manifest import Entry, Manifest
from slm.checkpoint.ranks import ALONE, Ranks
from slm.checkpoint.retention import Stretch, prune
from slm.checkpoint.staging import Staging
from slm.checkpoint.tensor_file import Part
from slm.checkpoint.writing import Tensors, begin, commit, join_lone_files, parts_of, write_groups, write_texts
from slm.config.errors import RunError
from slm.config.files import replace_durably, sync_directory

if TYPE_CHECKING:
    import torch

PATIENCE = 1800.0
"""Seconds that ranks wait for each other's files."""
GRACE = 3.0
"""Seconds until a directory that is gone, with no checkpoint in its place, means failure: names travel slowly on network file systems."""


@dataclass
class _Job:
    """One save. ``attempt``: what tells it from another save of the same step."""

    step: int
    partial: Path
    final: Path
    groups: dict[str, list[Part]]
    state: Mapping[str, Any]
    config: str
    tokenizer: bytes
    copied: "torch.cuda.Event | None"
    attempt: str = ""
    writing: Path | None = None


class Saver:
    """Writes the checkpoints of a run. Every process has one; `save`, `wait` and `close` are called by all at the same steps.

    ``stretch``: counts the stretches of ``retention.every`` (the schema doesn't know how long a step is). ``spare``: the checkpoint that the run
    resumed from, see `superseded`. A save that failed is raised by the next `check`, `wait` or `save`, once.
    """

    def __init__(
        self,
        run_dir: Path,
        retention: Retention | None = None,
        world: Ranks = ALONE,
        *,
        stretch: Stretch | None = None,
        spare: Path | None = None,
        asynchronous: bool = True,
        patience: float = PATIENCE,
    ) -> None:
        self.run_dir, self.retention, self.world = run_dir, retention or Retention(), world
        if (self.retention.every is None) != (stretch is None):
            raise ValueError("retention.every and stretch, which counts by it, go together")
        self.stretch, self.spare, self.asynchronous, self.patience = stretch, spare, asynchronous, patience
        self.committed: Path | None = None
        """The last checkpoint that this saver has seen whole."""
        self._staging = Staging()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._leaving = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.wait()
        else:
            self.close()

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any], config: str, tokenizer: bytes) -> None:
        """Begin to write a checkpoint, after the one before is done. Without ``asynchronous`` it is written when this returns.

        ``tensors``: the same groups and names on every process; they may change as soon as this returns.

        Raises:
            RunError: this save, or the one before, couldn't be written; the checkpoints that stand are untouched.
        """
        final = folder_of(self.run_dir) / step_name(step)
        partial, problem = aside(final), None
        try:
            self.wait()
            if self.world.rank == 0:
                begin(partial, uuid.uuid4().hex)
        except OSError as error:
            problem = self._explained(step, error, partial)
        except RunError as error:
            problem = error
        if self.world.any(problem is not None):
            if self.world.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise problem or RunError(f"The checkpoint of step {step} wasn't begun: another process says why.")
        groups = parts_of(tensors, self.world.rank, self._staging.copy if self.asynchronous else lambda g, n, t: t)
        job = _Job(step, partial, final, groups, state, config, tokenizer, self._staging.recorded())
        if self.asynchronous:
            self._thread = threading.Thread(target=self._run, args=(job,), name=f"checkpoint {step}", daemon=True)
            self._thread.start()
        else:
            self._run(job)
            self.check()

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did. Costs nothing: call it at each step."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait until the last save stands, and raise what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Let the save in flight come to its end, without waiting long for other processes: they may be dead. Raises nothing."""
        self._leaving.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # ---- in the thread ------------------------------------------------------------------------------

    def _run(self, job: _Job) -> None:
        """Write and commit; whatever goes wrong is kept for the training thread."""
        try:
            if job.copied is not None:
                job.copied.synchronize()
            job.attempt = self._attempt(job)
            entries = self._write(job)
            if self.world.rank == 0:
                self._commit(job, entries | self._parts_of_others(job))
            else:
                self._leave_part(job, {"files": {name: entry.to_json() for name, entry in entries.items()}})
                self._await_commit(job)
        except OSError as error:
            self._give_up(job, self._explained(job.step, error, job.writing, job.final if _stands(job) else None))
        except BaseException as error:
            self._give_up(job, error)

    def _write(self, job: _Job) -> dict[str, Entry]:
        """This process's files."""

        def note(file: Path) -> None:
            job.writing = file

        entries = write_groups(job.partial, job.groups, self.world.rank, self.world.size, note)
        if self.world.rank == 0:
            entries |= write_texts(job.partial, job.state, job.config, job.tokenizer, note)
        return entries

    def _commit(self, job: _Job, entries: dict[str, Entry]) -> None:
        job.writing = job.partial
        for left in (job.partial / "id", *job.partial.glob("part-*.json")):
            left.unlink()
        entries = join_lone_files(job.partial, job.groups, entries)
        commit(job.partial, job.final, Manifest(job.step, entries, job.attempt))
        self.committed = job.final
        job.writing = job.final.parent / "latest"
        replace_durably(job.writing, job.final.name.encode())
        prune(job.final.parent, self.retention, self.stretch, self.spare)

    def _give_up(self, job: _Job, error: BaseException) -> None:
        self._error = error
        if self.world.rank == 0:
            shutil.rmtree(job.partial, ignore_errors=True)
            return
        try:
            for file in job.partial.glob(f"*-{self.world.rank + 1:05d}-of-*"):
                file.unlink()  # on a full disk it makes room for the message
            self._leave_part(job, {"failed": str(error)})
        except OSError:
            pass  # rank 0 will find the part missing, and this process says why when it leaves

    # ---- between the ranks --------------------------------------------------------------------------

    def _attempt(self, job: _Job) -> str:
        """What rank 0 has called this save."""
        file = job.partial / "id"
        if not self._until(file.exists):
            raise RunError(f"The checkpoint of step {job.step} was given up: this process can't see {job.partial}.")
        return file.read_text()

    def _leave_part(self, job: _Job, content: dict[str, Any]) -> None:
        sync_directory(job.partial)
        replace_durably(job.partial / f"part-{self.world.rank + 1:05d}.json", json.dumps(content).encode())

    def _parts_of_others(self, job: _Job) -> dict[str, Entry]:
        """What the other ranks have written, when all have."""
        entries: dict[str, Entry] = {}
        for rank in range(1, self.world.size):
            file = job.partial / f"part-{rank + 1:05d}.json"
            if not self._until(file.exists):
                raise RunError(
                    f"The checkpoint of step {job.step} was given up: process {rank} didn't finish its part of {job.partial}."
                )
            part = json.loads(file.read_bytes())
            if "failed" in part:
                raise RunError(part["failed"])
            entries |= {name: Entry.from_json(entry) for name, entry in part["files"].items()}
        return entries

    def _await_commit(self, job: _Job) -> None:
        """Wait until rank 0 has made the directory a checkpoint."""
        gone_at: list[float] = []

        def settled() -> bool:
            if job.partial.exists():
                return False
            gone_at.append(time.monotonic())
            return _stands(job) or gone_at[-1] - gone_at[0] > GRACE

        if not self._until(settled) or not _stands(job):
            raise RunError(f"The checkpoint of step {job.step} was given up by the main process, which says why.")
        self.committed = job.final

    def _until(self, ready: Callable[[], bool]) -> bool:
        """Look again and again, for `patience` seconds, or `GRACE` when the run is leaving."""
        end, pause = time.monotonic() + self.patience, 0.005
        while not ready():
            if self._leaving.is_set():
                end = min(end, time.monotonic() + 2 * GRACE)
            if time.monotonic() > end:
                return False
            time.sleep(pause)
            pause = min(0.2, pause * 1.3)
        return True

    def _explained(self, step: int, error: OSError, at: Path | None, standing: Path | None = None) -> RunError:
        where = error.filename or at or folder_of(self.run_dir)
        reason = f"{error.strerror or error} ({where})"
        if standing is not None:
            return RunError(f"The checkpoint {standing} is written and whole, but not what belongs to it: {reason}.")
        before = latest(self.run_dir)
        kept = f"The previous checkpoint, {before.name}, is whole" if before else "There is no earlier checkpoint"
        return RunError(
            f"Can't save the checkpoint of step {step} in {folder_of(self.run_dir)}: {reason}. {kept}. "
            f"Make room (or set log.dir elsewhere) and run the same command again."
        )


def _stands(job: _Job) -> bool:
    """Whether the checkpoint is there, and this very save wrote it."""
    try:
        return Manifest.read(job.final).id == job.attempt
    except RunError:
        return False
