"""Checkpoints: written whole or not at all, checked when read.

safetensors and JSON, no pickles: a checkpoint from a stranger can't run code. Read `layout` for what stands where, `saver` for how a
save runs beside the training, `reading` for how any sharding is read into any other. Nothing here imports torch before it is needed:
listing checkpoints takes none.
"""

from slm.checkpoint.choosing import listing, newest
from slm.checkpoint.config import Retention
from slm.checkpoint.layout import latest, pin, pinned, resolve, run_dir_of, unpin
from slm.checkpoint.manifest import verify
from slm.checkpoint.reading import Checkpoint, Spec, describe, load, read_into, read_state, specs
from slm.checkpoint.restore import Restored, restore
from slm.checkpoint.retention import newest_sound
from slm.checkpoint.saver import Saver
from slm.checkpoint.single import save

__all__ = [
    "Checkpoint",
    "Restored",
    "Retention",
    "Saver",
    "Spec",
    "describe",
    "latest",
    "listing",
    "load",
    "newest",
    "newest_sound",
    "pin",
    "pinned",
    "read_into",
    "read_state",
    "resolve",
    "restore",
    "run_dir_of",
    "save",
    "specs",
    "unpin",
    "verify",
]
