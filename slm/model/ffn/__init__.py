"""The feed-forward slot: what happens to each token by itself. `base` defines the slot, `dense` holds the gated and plain
ones, `series` PanGu-pi's, `moe` a mixture of experts."""

from slm.model.ffn import dense as dense  # each registers its parts
from slm.model.ffn import moe as moe
from slm.model.ffn import series as series
from slm.model.ffn.base import FeedForwardPart, FeedForwardSlot, ffn
from slm.model.ffn.dense import Dense, Gated, ReluSquared, SwiGLU

__all__ = ["Dense", "FeedForwardPart", "FeedForwardSlot", "Gated", "ReluSquared", "SwiGLU", "ffn"]
