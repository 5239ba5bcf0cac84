"""The decoder: embed, run the blocks, normalise. The loss head stands beside it.

::

    tokens -> embedding -> block x layers -> final norm -> hidden states -> head -> logits or loss
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slm.model.cache import KVCache
from slm.model.config import Model
from slm.model.sequence import Mask, Sequence
from slm_kernels import linear_cross_entropy


@dataclass(frozen=True)
class LossSums:
    """Sums over the counted targets. ``loss``: what is optimised; ``nll``: cross entropy in nats, no gradient."""

    loss: Tensor
    nll: Tensor
    count: Tensor


class Decoder(nn.Module):
    """A decoder-only transformer. Weights are uninitialised until `init_weights` or a checkpoint fills them."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.config = config
        self.embedding = config.embedding.build_embedding(config.vocab_, config.dim)
        self.position = config.position.build(config.contexts[0])
        self.blocks = nn.ModuleList(config.residual.build(ctx) for ctx in config.contexts)
        self.norm = config.norm.build(config.dim)
        self.attention_backend = "auto"

    def init_weights(self, seed: int) -> "Decoder":
        """Fill all parameters from a seed, the same on every device. Returns self."""
        self.config.init.apply(self, self.config.layers, seed)
        return self

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        docs_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, (B, T, D).

        Args:
            tokens_BT: int64 ids.
            positions_BT: position of each token; by default counted from the cache's end.
            docs_BT: number of the document each token belongs to within its row; a token attends to earlier
                tokens of its own document only. None: each row is one document.
            cache: keys and values of past tokens; grows by T.
        """
        length, past = tokens_BT.shape[1], cache.length if cache is not None else 0
        if positions_BT is None:
            positions_BT = torch.arange(past, past + length, device=tokens_BT.device)[None]
        mask = Mask(length, tokens_BT.device, docs_BT, past)
        sequence = Sequence(mask, self.position, self.position.tables(positions_BT), self.attention_backend, cache)
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, sequence)
        if cache is not None:
            cache.advance(length)
        return self.norm(x_BTD)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token of the vocabulary: (..., D) -> (..., V)."""
        scores: Tensor = self.embedding.logits(hidden)
        return scores

    def loss(self, hidden_BTD: Tensor, targets_BT: Tensor) -> LossSums:
        """Loss summed over targets that are not -100, without keeping the logits."""
        loss, nll = linear_cross_entropy(
            hidden_BTD.flatten(0, -2), self.embedding.head_weight, targets_BT.flatten(), z_loss=self.config.aux.z_weight
        )
        return LossSums(loss, nll, (targets_BT != -100).sum())

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for ``batch`` sequences of up to ``max_len`` tokens, in the weights' dtype and device."""
        weight = self.embedding.weight
        shapes = [ctx.attention.cache_shape for ctx in self.config.contexts]
        return KVCache.allocate(shapes, batch, max_len, weight.dtype, weight.device)
