"""Optimisers, and which parameter gets what.

One interface: an `OptimPart` gets every parameter with its name and tensor class and builds torch optimisers that hold each
exactly once; the trainer sets the rate of their groups (`set_rate`) and ``found_inf``, a device tensor that makes a step change
nothing (see `steps.guarded`). Each optimiser has two files of its own: what can be set, without torch (`muon`), and how it steps (`steps.muon`).
Read `base`, `rules`, `steps.guarded`, then any pair.

Parameters may be sharded (FSDP2, HSDP): an optimiser then gives the result that it gives for the whole tensors. How matrices
get to where they are needed whole is in `steps.shards`.
"""

from slm.train.optim.adafactor import Adafactor
from slm.train.optim.adam_mini import AdamMini
from slm.train.optim.adamw import AdamW
from slm.train.optim.base import NamedParameter, OptimPart, OptimSlot, optim, set_rate
from slm.train.optim.lion import Lion
from slm.train.optim.muon import Muon
from slm.train.optim.rules import Rule
from slm.train.optim.schedule_free import ScheduleFree
from slm.train.optim.sgd import SGD
from slm.train.optim.soap import SOAP

__all__ = [
    "SGD",
    "SOAP",
    "Adafactor",
    "AdamMini",
    "AdamW",
    "Lion",
    "Muon",
    "NamedParameter",
    "OptimPart",
    "OptimSlot",
    "Rule",
    "ScheduleFree",
    "optim",
    "set_rate",
]
