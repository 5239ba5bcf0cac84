"""The attention slot. `base` defines the slot, the other files hold one family each, `backends` computes."""

from slm.model.attention import softmax as softmax  # registers the parts
from slm.model.attention.base import AttentionPart, AttentionSlot, attention

__all__ = ["AttentionPart", "AttentionSlot", "attention"]
