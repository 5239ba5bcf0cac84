"""`slm launch`: the script, and a whole preempted job under a Slurm made of three shell scripts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import slm
from typer.testing import CliRunner

from slm import checkpoint
from slm.cli.main import app
from slm.config.errors import RESUMABLE, ConfigError, RunError
from slm.config.yaml import dump_yaml
from slm.launch.node import Place, _Forwarding, children, run_workers
from slm.launch.slurm import Job, script, submit
from slm.train.metrics import read_metrics

FAST = ["finish.samples=0", "finish.export=[]", "finish.report=false"]
JOB = Job("a run/with blanks", nodes=4, gpus_per_node=8, time="24:00:00", partition="a100", extra={"exclusive": None})

START = """
export SLURM_JOB_ID=4711 SLURM_JOB_NODELIST=node01 SLURM_NNODES=1 SLURM_NODEID=0 SLURM_CPUS_ON_NODE=2
script=$(cat "$FAKE/script")
log=$(sed -n 's/^#SBATCH --output=//p' "$script" | sed s/%j/4711/)
setsid bash "$script" >>"$log" 2>&1 </dev/null &
echo $! >>"$FAKE/jobs"
"""
FAKES = {
    "sbatch": 'echo "sbatch $*" >>"$FAKE/calls"; echo "${@: -1}" >"$FAKE/script"\n' + START + "echo 4711",
    "scontrol": 'if [ "$1" = show ]; then echo node01; exit; fi\necho "scontrol $*" >>"$FAKE/calls"\n' + START,
    "srun": 'echo "srun $*" >>"$FAKE/calls"; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
}
"""One node: sbatch and a requeue start the script in the background, srun becomes the node's command."""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that records what the fakes were called with (``calls``) and the jobs' process ids (``jobs``)."""
    place = tmp_path / "fake"
    place.mkdir()
    for name, body in FAKES.items():
        (place / name).write_text(f"#!/bin/bash\n{body}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(place))
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    return place


def until(condition, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def step_of(run_dir: Path) -> int:
    return max((r["step"] for r in read_metrics(run_dir / "metrics.jsonl")), default=0)


@pytest.mark.slow
def test_a_preempted_job_saves_requeues_and_finishes(tiny, slurm: Path) -> None:
    Path("recipe.yaml").write_text(dump_yaml(tiny(train__budget={"steps": 400}).model_dump(mode="json")))
    said = json.loads(
        slm("launch", "slurm", "recipe.yaml", *FAST, "--gpus-per-node", "2", "--time", "1:00:00", "--json").stdout
    )
    run_dir = Path("runs/tiny").absolute()
    log = Path(said["log"])
    assert (said["job"], log) == ("4711", run_dir / "slurm" / "4711.log")
    until(lambda: step_of(run_dir) >= 5)
    [job] = (slurm / "jobs").read_text().split()
    os.kill(int(job), signal.SIGUSR1)  # what Slurm does with --signal=B:USR1@120
    until(lambda: "scontrol requeue 4711" in (slurm / "calls").read_text())
    stopped = checkpoint.latest(run_dir)
    until((run_dir / "summary.json").exists)
    text = log.read_text()
    assert "Stopped and saved; the job goes back into the queue." in text
    assert "Stopped at step" in text  # the trainer itself, at a step boundary
    assert "Resumed from step" in text
    assert stopped is not None
    assert 5 <= int("".join(c for c in stopped.name if c.isdigit())) < 400
    steps = [r["step"] for r in read_metrics(run_dir / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == list(range(1, 401))
    assert (slurm / "calls").read_text().count("srun ") == 2
    assert not list(run_dir.glob("slurm/resumable*"))


def test_the_script_asks_for_what_it_needs() -> None:
    text = script(JOB, "my recipe.yaml", ["train.seed=1", "data.source.paths=['a b']"], Path("/shared/runs/x"))
    for line in (
        "#SBATCH --job-name=a-run-with-blanks",
        "#SBATCH --nodes=4",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:USR1@120",
        "#SBATCH --output=/shared/runs/x/slurm/%j.log",
        "#SBATCH --exclusive",
    ):
        assert line in text.splitlines(), line
    assert "'my recipe.yaml' train.seed=1 'data.source.paths=['\"'\"'a b'\"'\"']'" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": "2 days"}, "no time limit"),
        ({"extra": {"signal": "B:TERM@1"}}, "set already, to B:USR1@120"),
        ({"extra": {"-C": "a100"}}, "long name"),
        ({"partition": "a b"}, "can't read blanks"),
    ],
)
def test_what_sbatch_could_not_read_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        script(Job(**{"name": "x", "nodes": 1, "gpus_per_node": 1, "time": "60"} | change), "toy", [], Path("/runs/x"))


def test_no_sbatch_and_an_sbatch_that_refuses(slurm: Path, tmp_path: Path, monkeypatch) -> None:
    (slurm / "sbatch").write_text("#!/bin/bash\necho 'Invalid partition' >&2; exit 1\n")
    with pytest.raises(RunError, match="Invalid partition"):
        submit("#!/bin/bash\n", tmp_path / "run")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="no `sbatch`"):
        submit("#!/bin/bash\n", tmp_path / "run")


def launch(*arguments: str) -> str:
    return CliRunner().invoke(app, ["launch", *arguments], catch_exceptions=False).stdout


def test_a_typo_dies_before_the_queue(slurm: Path) -> None:
    with pytest.raises(ConfigError, match="lrr"):
        launch("slurm", "toy", "train.optim.lrr=1")
    assert not (slurm / "calls").exists()


def test_a_dry_run_prints_the_script_and_nothing_else(slurm: Path) -> None:
    text = launch("slurm", "toy", "--nodes", "2", "--setup", "module load cuda", "--dry-run")
    assert text.startswith("#!/bin/bash\n#SBATCH --job-name=toy\n#SBATCH --nodes=2\n")
    assert "\nmodule load cuda\n" in text
    assert not (slurm / "calls").exists()


def test_local_is_a_torchrun_line_after_the_plan() -> None:
    out = launch("local", "toy", "train.seed=1", "--gpus", "2", "--dry-run")
    assert "512k tokens (" in out
    assert "no token store for" in out
    assert out.splitlines()[-1] == "torchrun --standalone --nproc-per-node 2 -m slm train toy train.seed=1"


def test_exit_codes_of_workers(capsys) -> None:
    stop = _Forwarding()
    assert stop.exit_code({0: RESUMABLE, 1: RESUMABLE}) == RESUMABLE
    assert stop.exit_code({0: RESUMABLE, 1: 2}) == 2
    assert stop.exit_code({1: -signal.SIGKILL}) == 1
    assert "process 1 of this node was killed by SIGKILL" in capsys.readouterr().err
    assert stop.exit_code({0: -signal.SIGUSR1}) == 1  # nobody here asked for it
    stop.requested = True
    assert stop.exit_code({0: -signal.SIGUSR1, 1: RESUMABLE}) == RESUMABLE


def test_several_nodes_meet_at_the_first() -> None:
    assert Place().rendezvous()["rdzv_endpoint"] == "localhost:0"
    far = Place(4, 2, "node01", 23456).rendezvous()
    assert (far["rdzv_backend"], far["rdzv_endpoint"], far["rdzv_configs"]["rank"]) == ("static", "node01:23456", 2)


@pytest.mark.slow
def test_two_nodes_run_one_world() -> None:
    """Two agents on this machine, told that they are two nodes."""
    told = "' '.join(os.environ[k] for k in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'))"
    worker = f"import os; os.write(1, ({told} + chr(10)).encode())"  # at once: two workers share the pipe
    code = (
        "import sys\nfrom slm.launch.node import Place, run_workers\n"
        f"sys.exit(run_workers(['-c', {worker!r}], 2, Place(2, int(sys.argv[1]), 'localhost', 23917)))"
    )
    nodes = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], stdout=subprocess.PIPE, text=True) for i in range(2)
    ]
    lines = [line for node in nodes for line in node.communicate(timeout=120)[0].splitlines()]
    assert sorted(lines) == ["0 4 0", "1 4 1", "2 4 0", "3 4 1"]
    assert [node.returncode for node in nodes] == [0, 0]


def test_a_worker_that_fails_is_named_and_its_code_kept(capfd) -> None:
    assert run_workers(["-c", "import os, sys; sys.exit(2 * (os.environ['RANK'] == '1'))"], 2) == 2
    assert "process 1 of this node ended with exit code 2" in capfd.readouterr().err


def test_children_are_found() -> None:
    child = subprocess.Popen(["sleep", "60"])
    assert child.pid in children(os.getpid())
    child.kill()
    child.wait()
    assert child.pid not in children(os.getpid())
