"""`slm launch`: a recipe on several devices, here or under Slurm."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer

from slm.cli.asked import BranchFrom, Profile, as_overrides, branched
from slm.cli.output import JsonFlag, Overrides, Recipe, console, emit_json

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be started, and start nothing.")]


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Train on several devices.", no_args_is_help=True, rich_markup_mode=None)
    verbs.command("local")(local)
    verbs.command("slurm")(slurm)
    app.add_typer(verbs, name="launch")


def local(
    recipe: Recipe,
    overrides: Overrides = None,
    branch_from: BranchFrom = None,
    profile: Profile = 0,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Processes, one per GPU; by default one for every GPU here.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Train on several GPUs of this machine: `slm launch local smollm2-135m --gpus 4`.

    It is `torchrun --standalone --nproc-per-node 4 -m slm train ...`, but Ctrl-C saves, and the exit code says
    whether the run can be resumed (75).
    """
    from slm.launch.node import run_workers

    given, processes = as_overrides(overrides, branch_from, profile), gpus or _gpus_here()
    _plan(recipe, given, processes)
    command = ["-m", "slm", "train", recipe, *given]
    typer.echo(shlex.join(["torchrun", "--standalone", "--nproc-per-node", str(processes), *command]))
    if not dry_run:
        raise typer.Exit(run_workers(command, processes))


def slurm(
    recipe: Recipe,
    overrides: Overrides = None,
    branch_from: BranchFrom = None,
    profile: Profile = 0,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs, hence processes, of each node.")] = 1,
    time: Annotated[
        str, typer.Option(help="Limit of one job, in Slurm's notation. The run may take many.")
    ] = "24:00:00",
    partition: Annotated[str | None, typer.Option()] = None,
    account: Annotated[str | None, typer.Option()] = None,
    qos: Annotated[str | None, typer.Option()] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="Cores of each node.")] = None,
    grace: Annotated[int, typer.Option(min=1, help="Seconds to save and leave before a job is ended.")] = 120,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(help="Any other option of sbatch, as constraint=a100 or exclusive (may be repeated)."),
    ] = None,
    setup: Annotated[
        list[str] | None, typer.Option(help="A shell line to run first, such as 'module load cuda' (may be repeated).")
    ] = None,
    dry_run: DryRun = False,
    json: JsonFlag = False,
) -> None:
    """Submit a recipe to Slurm; the job saves when it is preempted, requeues and resumes by itself."""
    from slm.launch.slurm import Job, script, submit
    from slm.train.rundir import run_dir_of

    given = as_overrides(overrides, branch_from, profile)
    run, line = _plan(recipe, given, nodes * gpus_per_node, quiet=json or dry_run)
    run_dir = run_dir_of(run).absolute()
    job = Job(
        run.name, nodes, gpus_per_node, time, partition, account, qos, cpus_per_task, grace,
        {key: value if given else None for key, given, value in (s.partition("=") for s in sbatch or [])},
        tuple(setup or []),
    )  # fmt: skip
    text = script(job, recipe, given, run_dir)
    if dry_run:
        emit_json({"plan": line, "script": text}) if json else typer.echo(text, nl=False)
        return
    number, file = submit(text, run_dir)
    if json:
        emit_json({"plan": line, "job": number, "script": str(file), "log": str(file.parent / f"{number}.log")})
        return
    typer.echo(f"Submitted as job {number}. Its log: {file.parent / f'{number}.log'}. Its curves: slm watch {run_dir}")


def _plan(recipe: str, overrides: list[str], processes: int, quiet: bool = False) -> tuple[Any, str]:
    """Compose and validate before anything is started or queued, and say in a line what will be trained."""
    from slm.config.compose import compose
    from slm.planning import plan_run
    from slm.report.page import si
    from slm.run import Run, check_name

    composed = compose(recipe, overrides, schema=Run)
    run = branched(composed.config)
    check_name(run)
    plan = plan_run(run, recipe, processes=processes)
    line = (
        f"{run.name}: {si(plan['params']['unique'])} parameters, {si(plan['tokens'])} tokens "
        f"({plan['tokens_per_param']:.3g} per parameter), {plan['steps']:,} steps of {si(plan['batch_tokens'])} tokens"
    )
    unmade = ", ".join(source["source"] for source in plan["data"] if source["tokens"] is None)
    warnings = [*plan["warnings"]]
    if unmade:
        warnings.append(
            f"no token store for {unmade} yet: all devices would wait for it. `slm data tokenize` makes it ahead."
        )
    out = console(quiet)
    for text in [*composed.notes, line, *(f"Warning: {w}" for w in warnings)]:
        out.print(text, markup=False, soft_wrap=True)
    return run, line


def _gpus_here() -> int:
    import torch

    from slm.config.errors import ConfigError

    if not torch.cuda.is_available():
        raise ConfigError(
            "No GPU is found here. `slm launch local RECIPE --gpus 2` starts two processes on the CPU; one needs only `slm train`."
        )
    return torch.cuda.device_count()
