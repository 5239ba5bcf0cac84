"""Checkpoints: written whole or not at all, checked when read.

safetensors and JSON, no pickles: a checkpoint from a stranger can't run code.
"""

from slm.checkpoint.files import Checkpoint, describe, latest, load, resolve, save, verify
from slm.checkpoint.restore import Restored, restore

__all__ = ["Checkpoint", "Restored", "describe", "latest", "load", "resolve", "restore", "save", "verify"]
