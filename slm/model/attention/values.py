"""What is mixed into an attention's values: the first layer's, or a learned vector per token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slm.model.sequence import Here
from slm_kernels import embedding


class ValueMix(nn.Module):
    """a v + b other, with learned a and b that start at 1/2 (ResFormer; the value lambdas of modded-nanogpt)."""

    param_classes = {"weight": "embedding", "mix": "scalar"}
    starts = {"mix": 0.5}

    def __init__(self, kind: str, vocab: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads
        self.mix = nn.Parameter(torch.empty(2))
        self.weight = nn.Parameter(torch.empty(vocab, heads * head_dim)) if kind == "embedding" else None

    def forward(self, v_BGTK: Tensor, here: Here) -> Tensor:
        if self.weight is not None:
            B, T = here.tokens_BT.shape
            other = embedding(here.tokens_BT, self.weight).view(B, T, self.heads, -1).transpose(1, 2)
        else:
            if here.first_values is None:
                here.first_values = v_BGTK
            other = here.first_values
        a, b = self.mix.to(v_BGTK.dtype)
        return a * v_BGTK + b * other.to(v_BGTK.dtype)


def value_mix_params(kind: str | None, vocab: int, width: int) -> int:
    """Parameters of a `ValueMix`."""
    return 0 if kind is None else 2 + (vocab * width if kind == "embedding" else 0)
