"""The plan: which tokens stand in row *n* of a run. See `slm.data.plan.plan`.

`packing` puts documents into rows, `index` keeps the result on disk, `order` permutes rows, `mixture`,
`timeline` and `schedule` say which source comes when, `rows` makes arrays. Nothing here imports torch.
"""

from slm.data.plan.description import diff
from slm.data.plan.documents import Documents, MemoryDocuments
from slm.data.plan.mixture import Mixture, Order, Stage
from slm.data.plan.plan import Plan
from slm.data.plan.stages import Horizon

__all__ = ["Documents", "Horizon", "MemoryDocuments", "Mixture", "Order", "Plan", "Stage", "diff"]
