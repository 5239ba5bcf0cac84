"""Learning-rate schedules, trunks and branches, batch ramps: pure functions of a step or of tokens, without torch."""

from slm.train.schedule.base import Length, SchedulePart, ScheduleSlot, schedule
from slm.train.schedule.branch import branch_of, check_branch, shared_until
from slm.train.schedule.ramp import BatchPlan, BatchRamp
from slm.train.schedule.shapes import (
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    Milestone,
    MultiStep,
    Trapezoid,
    WarmupStableDecay,
)

__all__ = [
    "BatchPlan",
    "BatchRamp",
    "Constant",
    "Cosine",
    "InverseSqrt",
    "Length",
    "Linear",
    "Milestone",
    "MultiStep",
    "SchedulePart",
    "ScheduleSlot",
    "Trapezoid",
    "WarmupStableDecay",
    "branch_of",
    "check_branch",
    "schedule",
    "shared_until",
]
