"""One trunk and three branches beside three runs from the start: what they cost, and where they end.

    python tools/trunk_and_branches.py [--out docs/img/trunk.svg] [--work DIR]

Trains a small model with `slm train` on the CPU (some minutes), draws the figure and prints a JSON object: held-out bits
per byte of each pair, whether their weights are the same bits, and the steps that each way took. Runs that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BUDGETS = (200, 225, 250)
DECAY = 0.08
"""Of each budget."""
SETTINGS = [
    "model.dim=96", "model.layers=3", "model.attention.heads=4", "model.attention.kv_heads=2", "model.ffn.hidden=256",
    "train.batch_tokens=2048", "train.schedule.warmup=20 steps", "log.every=5", "log.eval_every=10 steps",
    "finish.samples=0", "finish.export=[]", "finish.report=false", "finish.baselines=false",
]  # fmt: skip


def slm(work: Path, *arguments: str) -> None:
    """Run a command of slm in the work directory."""
    subprocess.run([sys.executable, "-m", "slm", *arguments], cwd=work, check=True)


def decay_of(budget: int) -> int:
    return round(DECAY * budget)


def train_all(work: Path) -> dict[int, tuple[Path, Path]]:
    """Budget -> (branch, run from the start)."""
    leaves = [budget - decay_of(budget) for budget in BUDGETS]
    trunk = ["train.schedule.decay=0 steps", "name=trunk", "log.keep=99"]
    # the trunk is needed as far as the last branch only; all of them leave at a multiple of 23 steps
    slm(
        work,
        "train",
        "quickstart",
        *SETTINGS,
        *trunk,
        f"train.budget={{steps: {leaves[-1]}}}",
        "log.checkpoint_every=23 steps",
    )
    pairs = {}
    for budget, leave in zip(BUDGETS, leaves, strict=True):
        point = f"runs/trunk/checkpoints/step-{leave:08d}"
        decay = f"train.schedule.decay={decay_of(budget)} steps"
        slm(work, "train", "quickstart", *SETTINGS, "--branch-from", point, decay, f"name=branch-{budget}")
        slm(work, "train", "quickstart", *SETTINGS, f"train.budget={{steps: {budget}}}", decay, f"name=whole-{budget}")
        pairs[budget] = (work / f"runs/branch-{budget}", work / f"runs/whole-{budget}")
    return pairs


def compare(pairs: dict[int, tuple[Path, Path]]) -> dict[str, Any]:
    """Figures of all pairs, and what they cost in steps."""
    from slm import checkpoint

    found = {}
    for budget, folders in pairs.items():
        bpb = [json.loads((f / "summary.json").read_text())["bpb"] for f in folders]
        a, b = (checkpoint.load(checkpoint.resolve(f)).model for f in folders)
        found[str(budget)] = {"branch_bpb": bpb[0], "whole_bpb": bpb[1], "same_bits": all(a[n].equal(b[n]) for n in a)}
    decays = sum(map(decay_of, BUDGETS))
    trunk = BUDGETS[-1] - decay_of(BUDGETS[-1])
    return {
        "budgets": found,
        "steps": {"trunk": trunk, "branches": decays, "whole": sum(BUDGETS), "share": (trunk + decays) / sum(BUDGETS)},
    }


def draw(pairs: dict[int, tuple[Path, Path]], out: Path) -> None:
    """Held-out bits per byte over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6))
    axes.plot(*curve(next(iter(pairs.values()))[0].parent / "trunk"), color="0.35", label="trunk")
    for number, (budget, (branch, whole)) in enumerate(pairs.items()):
        steps, bpb = curve(branch)
        start = next(i for i, s in enumerate(steps) if s >= budget - decay_of(budget)) - 1
        axes.plot(steps[start:], bpb[start:], color=f"C{number}", label=f"branch to {budget} steps")
        axes.plot(
            *[values[-1] for values in curve(whole)],
            "o",
            mfc="none",
            ms=9,
            color=f"C{number}",
            label=f"run of {budget} from the start",
        )
    axes.set(xlabel="steps", ylabel="held-out bits per byte")
    axes.set_ylim(top=curve(next(iter(pairs.values()))[0].parent / "trunk")[1][4])
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def curve(run: Path) -> tuple[list[int], list[float]]:
    from slm.train.metrics import read_metrics

    found = [(r["step"], r["heldout_bpb"]) for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "eval"]
    return [s for s, _ in found], [b for _, b in found]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("docs/img/trunk.svg"))
    parser.add_argument("--work", type=Path, default=Path("runs/trunk-and-branches"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    made = train_all(given.work)
    draw(made, given.out)
    print(json.dumps(compare(made), indent=1))
