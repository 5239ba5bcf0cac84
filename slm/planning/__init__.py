"""Everything knowable about a run before it is started."""

from slm.planning.plan import plan_run

__all__ = ["plan_run"]
