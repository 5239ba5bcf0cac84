"""Time and memory of the output layer's loss, forward and backward: chunked against materialised logits.

python tests/kernels/measure_head.py [--rows 8192 --dim 576 --vocab 49152 --repeats 1] prints one JSON object. Each variant
has a process of its own, for its memory is the peak of the process less what it held before the step (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

VARIANTS = ("materialised", "chunked")


def measure(variant: str, rows: int, dim: int, vocab: int) -> dict[str, float]:
    """Seconds of one step and peak bytes above the inputs, in this process."""
    import torch
    import torch.nn.functional as F

    from slm.cost.resident import peak_resident_bytes
    from slm_kernels import linear_cross_entropy

    torch.manual_seed(0)
    x = torch.randn(rows, dim).requires_grad_()
    w = (torch.randn(vocab, dim) * dim**-0.5).requires_grad_()
    y = torch.randint(vocab, (rows,))

    def step(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> float:
        if variant == "materialised":
            loss = F.cross_entropy(F.linear(x, w), y, reduction="sum")
        else:
            loss = linear_cross_entropy(x, w, y)[0]
        gx, gw = torch.autograd.grad(loss, [x, w])
        return float(loss) + float(gx[0, 0]) + float(gw[0, 0])

    step(x[:16], w[:64], y[:16] % 64)  # libraries set themselves up
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    started, cpu_started = time.perf_counter(), time.process_time()
    checksum = step(x, w, y)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    peak = peak_resident_bytes() - before
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak, "checksum": checksum}


def compare(rows: int, dim: int, vocab: int, repeats: int = 1) -> dict[str, object]:
    """Both variants by turns; of each the least that was measured. Ratios are chunked / materialised."""
    shape = [str(rows), str(dim), str(vocab)]
    runs: dict[str, list[dict[str, float]]] = {v: [] for v in VARIANTS}
    for variant in VARIANTS * repeats:
        command = [sys.executable, __file__, "--variant", variant, "--shape", *shape]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
        runs[variant].append(json.loads(done.stdout))
    best = {v: {key: min(r[key] for r in found) for key in found[0]} for v, found in runs.items()}
    ratio = {key: best["chunked"][key] / best["materialised"][key] for key in ("seconds", "cpu_seconds", "peak_bytes")}
    version = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__, torch.get_num_threads())"],
        check=True,
        capture_output=True,
        text=True,
    )
    torch_version, threads = version.stdout.split()
    machine = {"torch": torch_version, "threads": int(threads)}
    return {"shape": [rows, dim, vocab], **best, "ratio": ratio, "logits_bytes": 4 * rows * vocab, **machine}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--shape", type=int, nargs=3, default=(8192, 576, 49152))
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    if given.variant:
        print(json.dumps(measure(given.variant, *given.shape)))
    else:
        print(json.dumps(compare(*given.shape, given.repeats), indent=1))
