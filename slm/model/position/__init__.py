"""The position slot: how the model knows where a token stands. `base` defines the slot, `rope` rotates, `rope_scaling`
stretches it to longer contexts, `learned` adds vectors to the embeddings, `alibi` biases scores."""

from slm.model.position import alibi as alibi
from slm.model.position import learned as learned
from slm.model.position import rope as rope
from slm.model.position.base import NoPosition, Position, PositionPart, PositionSlot, position

__all__ = ["NoPosition", "Position", "PositionPart", "PositionSlot", "position"]
