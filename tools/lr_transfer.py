"""Does the best learning rate carry over to wider models? Trains small models on the sources of the running Python, byte by byte,
at several widths and rates, under the standard parametrisation and under muP.

``python tools/lr_transfer.py docs/img`` writes ``lr-standard.svg``, ``lr-mup.svg`` and ``lr-transfer.json`` (ten minutes on one
core).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from slm.data.config import Data
from slm.data.loader import make_batch
from slm.data.plan.of_corpus import plan_of
from slm.data.prepare import prepare
from slm.data.tokenizer import Bytes
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.report.charts import Chart, Line, standalone
from slm.train.coord_check import widened
from slm.train.optim import AdamW, set_rate
from slm.train.state import named_parameters

WIDTHS = (32, 64, 128)
EXPONENTS = tuple(range(-10, -3))
STEPS, ROWS, WARMUP, COUNTED = 150, 8, 15, 20
BASE: dict[str, Any] = {
    "dim": 32, "layers": 4, "vocab": 257, "context": 128, "attention": {"name": "mha", "heads": 2},
    "ffn": {"name": "swiglu", "hidden": 96}, "embedding": "untied", "init": {"name": "fan_in", "embedding": 0.1},
}  # fmt: skip
SCHEMES = {"standard": {}, "mup": {"parametrization": {"name": "mup", "base_dim": 32}}}


def final_loss(model: Model, batches: list[Any], lr: float) -> float:
    """Mean training loss (nats per byte) of the last steps; every batch is new text."""
    decoder = Decoder(model).init_weights(0)
    optimizers = AdamW(lr=lr, weight_decay=0.0).build(named_parameters(decoder))
    losses = []
    for step, b in enumerate(batches):
        set_rate(optimizers, min(1.0, (step + 1) / WARMUP) * min(1.0, (len(batches) - step) / (0.3 * len(batches))))
        sums = decoder.training_loss(b.tokens_BT, b.targets_BT, positions_BT=b.positions_BT, docs_BT=b.docs_BT)
        (sums.loss / sums.count).backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(float(sums.nll / sums.count))
    return sum(losses[-COUNTED:]) / COUNTED


def main(out: Path) -> None:
    """Run the grid, draw it, write its numbers."""
    data = Data(seq_len=128)
    plan = plan_of(prepare(data, Bytes(), "data"), data)
    batches = [make_batch(plan, range(i * ROWS, (i + 1) * ROWS)) for i in range(STEPS)]
    results: dict[str, dict[int, dict[int, float]]] = {}
    for scheme, changes in SCHEMES.items():
        base = Model(**BASE | changes)
        results[scheme] = {w: {e: final_loss(widened(base, w), batches, 2.0**e) for e in EXPONENTS} for w in WIDTHS}
        best = {w: min(losses, key=lambda e, losses=losses: losses[e]) for w, losses in results[scheme].items()}
        print(f"{scheme}: best exponent by width {best}", flush=True)
    write(results, out)


def write(results: dict[str, dict[int, dict[int, float]]], out: Path) -> None:
    """Draw a chart per scheme, and write the numbers."""
    lowest = min(v for widths in results.values() for losses in widths.values() for v in losses.values())
    for scheme, widths in results.items():
        lines = [
            Line(f"width {w}", sorted(losses), [losses[e] for e in sorted(losses)], marked=True)
            for w, losses in widths.items()
        ]
        chart = Chart("log2 of the learning rate", "loss (nats per byte)", lines, y_range=(lowest - 0.05, lowest + 0.9))
        (out / f"lr-{scheme}.svg").write_text(standalone(chart))
    record = {"torch": torch.__version__, "steps": STEPS, "batch_tokens": ROWS * 128, "loss": results}
    (out / "lr-transfer.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
