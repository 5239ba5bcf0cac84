"""The attention slot: whatever mixes tokens. `base` defines the slot, `backends` computes softmax attention; one family
a file: `softmax` (MHA, GQA, MQA and their options), `mla`, `differential`, `rglru` (a recurrence)."""

from slm.model.attention import differential as differential  # each registers its parts
from slm.model.attention import mla as mla
from slm.model.attention import rglru as rglru
from slm.model.attention import softmax as softmax
from slm.model.attention.base import AttentionPart, AttentionSlot, attention

__all__ = ["AttentionPart", "AttentionSlot", "attention"]
