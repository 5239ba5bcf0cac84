"""A Slurm job for a recipe: the script, and its submission.

Why a script from a template and not submitit: submitit pickles a function at submission and unpickles it in the job, where
it also takes the signals for itself to call the function's ``checkpoint`` method. Here there is nothing to pickle (the
job's work is the command `slm train RECIPE`), the trainer must get the signals, and whoever runs a cluster wants to
read and edit what is submitted.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from slm.config.errors import ConfigError, RunError

TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
"""Slurm's ways to write a time limit: minutes, m:ss, h:mm:ss, days-hours, days-hours:mm, days-hours:mm:ss."""


@dataclass(frozen=True)
class Job:
    """What is asked of Slurm.

    ``grace``: seconds between the signal and the end of the job, for a step, a checkpoint and the mirrors' last records.
    ``extra``: further sbatch options by name, ``None`` for one without value. ``setup``: shell lines run first.
    """

    name: str
    nodes: int
    gpus_per_node: int
    time: str
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus_per_task: int | None = None
    grace: int = 120
    extra: dict[str, str | None] = field(default_factory=dict)
    setup: tuple[str, ...] = ()

    def options(self, folder: Path) -> dict[str, str | None]:
        """The ``#SBATCH`` lines in order; logs go into ``folder``. Raises `ConfigError` for what sbatch couldn't read."""
        if not TIME.fullmatch(self.time):
            raise ConfigError(
                f"--time {self.time!r} is no time limit. Slurm reads 90 (minutes), 1:30:00 or 2-00:00:00."
            )
        optional = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "cpus-per-task": self.cpus_per_task,
        }
        ours: dict[str, str | None] = {
            "job-name": re.sub(r"[^\w.=,-]+", "-", self.name),
            "nodes": str(self.nodes),
            "ntasks-per-node": "1",
            "gpus-per-node": str(self.gpus_per_node),
            "time": self.time,
            **{key: str(value) for key, value in optional.items() if value is not None},
            "output": f"{folder}/%j.log",
            "open-mode": "append",
            "requeue": None,
            "signal": f"B:USR1@{self.grace}",
            "chdir": str(Path.cwd()),
        }
        for key in self.extra:
            if key in ours:
                raise ConfigError(
                    f"--sbatch {key}: that option is set already, to {ours[key] or 'on'}; it has a flag of its own or must stay."
                )
            if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
                raise ConfigError(
                    f"--sbatch {key!r} is no option of sbatch. Give its long name, such as constraint=a100 or exclusive."
                )
        options = ours | self.extra
        for key, value in options.items():
            if value is not None and re.search(r"[\s\"'\\#]", value):
                raise ConfigError(
                    f"The sbatch option --{key} would be {value!r}, and sbatch can't read blanks, quotes or # in a script's options. "
                    "Choose a name or a directory without them."
                )
        return options


def script(job: Job, recipe: str, overrides: list[str], run_dir: Path) -> str:
    """The batch script that trains ``recipe``. Logs and the mark of a resumable stop are kept in ``run_dir/slurm``."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("slm.launch"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["quote"] = shlex.quote
    folder = run_dir / "slurm"
    return environment.get_template("slurm.sh.j2").render(
        options=job.options(folder),
        setup=job.setup,
        marker=str(folder / "resumable"),
        python=sys.executable,
        processes=job.gpus_per_node,
        recipe=[recipe, *overrides],
    )


def submit(text: str, run_dir: Path) -> tuple[str, Path]:
    """Keep the script as ``run_dir/slurm/job.sh`` and hand it to ``sbatch``; returns the job's id and the file.

    Raises:
        ConfigError: there is no ``sbatch`` here.
        RunError: it refused the job.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "There is no `sbatch` on this machine: submit from a login node, or print the script with --dry-run."
        )
    file = run_dir / "slurm" / "job.sh"
    file.parent.mkdir(parents=True, exist_ok=True)  # Slurm doesn't make the directory of its log, and fails silently
    file.write_text(text)
    done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"sbatch refused {file}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout.strip().partition(";")[0], file  # "id;cluster" where there are several
