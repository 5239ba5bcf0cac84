"""The child of `mirror_wandb`: reads JSON lines, the first of them wandb.init's arguments, and logs the others.

Reports a fault as one JSON line on standard output. Ends when told so or when the trainer is gone. Imports no torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

KINDS = ("train", "eval")


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):  # meant for the trainer, which says when it ends
        signal.signal(number, signal.SIG_IGN)
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what wandb prints is no report
    try:
        mirror(json.loads(line) for line in sys.stdin)
    except (Exception, SystemExit) as error:
        report.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        report.flush()
        os._exit(1)  # not through wandb's exit hooks, which may wait for the very network that failed


def mirror(messages: Iterator[dict[str, Any]]) -> None:
    """Log until the end. The x axis is the record's own step: wandb's counter only goes up, so it would drop every record
    that a resumed run makes again after it cut its log back to the checkpoint."""
    import wandb

    run = wandb.init(settings=wandb.Settings(console="off", silent=True), **next(messages))
    run.define_metric("step", hidden=True)
    for kind in KINDS:
        run.define_metric(f"{kind}/*", step_metric="step")
    for message in messages:
        if "end" in message:
            run.finish()
            return
        run.log(message)
    run.finish(exit_code=1)  # the trainer was killed: it will be back under the same id


if __name__ == "__main__":
    main()
