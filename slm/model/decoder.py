"""The decoder: embed, run the blocks, normalise. The loss head stands beside it.

::

    tokens -> embedding (+ positions) -> blocks -> final norm -> hidden states -> head -> logits or loss
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slm.model.attention.routing import prepare
from slm.model.axes import norms_along
from slm.model.cache import Cache
from slm.model.config import Model
from slm.model.parts import BuildContext
from slm.model.position.base import Position
from slm.model.position.learned import LearnedPositions
from slm.model.precision import working_dtype
from slm.model.sequence import Encoding, Mask, Sequence
from slm_kernels import linear_cross_entropy
from slm_kernels.linear_cross_entropy import workspace_bytes

IGNORED = -100
"""Targets that count nothing."""


@dataclass(frozen=True)
class LossSums:
    """Sums over the counted targets. ``loss``: what is optimised; ``nll``: cross entropy in nats, no gradient; ``guided``: what
    a guide added, no gradient."""

    loss: Tensor
    nll: Tensor
    count: Tensor
    guided: Tensor | None = None


class Decoder(nn.Module):
    """A decoder-only transformer. Weights are uninitialised until `init_weights` or a checkpoint fills them."""

    axes = norms_along("dim", "norm")

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.config = config
        places = config.contexts
        self.embedding = config.embedding.build(places[0])
        self.positions, self.position_of = _positions(places)
        self.blocks = nn.ModuleList(_blocks(places))
        self.norm = places[0].norm() if config.residual.final_norm else nn.Identity()
        self.further = config.aux.build(places[-1])
        self.attention_backend = "auto"
        self.recorded = False

    def init_weights(self, seed: int) -> "Decoder":
        """Fill all parameters from a seed, the same on every device. Returns self."""
        self.config.init.apply(self, self.config, seed)
        return self

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        docs_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, (B, T, D).

        Args:
            tokens_BT: int64 ids.
            positions_BT: position of each token; by default counted from the cache's end.
            docs_BT: number of the document each token belongs to within its row; a token attends to earlier
                tokens of its own document only. None: each row is one document.
            cache: what is remembered of past tokens; grows by T.
        """
        return self._run(tokens_BT, positions_BT, docs_BT, cache)[0]

    def training_loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        docs_BT: Tensor | None = None,
        ce_weight: float = 1.0,
        guide: Callable[[Tensor], Tensor] | None = None,
    ) -> LossSums:
        """Forward pass and loss, with whatever the parts add to it (multi-token prediction, balance penalties).

        Args:
            ce_weight: factor on the cross entropies, z-loss and multi-token prediction included; penalties keep theirs.
            guide: takes the hidden states and gives another loss, summed over targets, such as a distance from a teacher. It is
                called in here because here a sharded model has its weights together.
        """
        hidden_BTD, sequence = self._run(tokens_BT, positions_BT, docs_BT, None)
        sums = self.loss(hidden_BTD, targets_BT)
        loss = sums.loss
        if self.further is not None:
            loss = loss + self._further_loss(hidden_BTD, targets_BT, sequence)
        if ce_weight != 1:
            loss = ce_weight * loss
        guided = None
        if guide is not None:
            guided = guide(hidden_BTD)
            loss = loss + guided
        for penalty in sequence.penalties:
            loss = loss + penalty.to(loss.dtype) * sums.count
        return LossSums(loss, sums.nll, sums.count, None if guided is None else guided.detach())

    def _run(
        self, tokens_BT: Tensor, positions_BT: Tensor | None, docs_BT: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Sequence]:
        length, past = tokens_BT.shape[1], cache.length if cache is not None else 0
        if positions_BT is None:
            positions_BT = torch.arange(past, past + length, device=tokens_BT.device)[None]
        made = [Encoding(p, p.tables(positions_BT)) for p in self.positions]  # type: ignore[operator,arg-type]
        encodings = [made[i] for i in self.position_of]
        if docs_BT is not None:
            docs_BT = docs_BT.expand(tokens_BT.shape)
        mask = Mask(length, tokens_BT.device, docs_BT, past, graph=self.recorded)
        prepare(self.attention_backend, self.config, mask, working_dtype(self.embedding.weight))
        sequence = Sequence(tokens_BT, positions_BT, mask, encodings, self.attention_backend, cache)
        x_BTD = self._embed(tokens_BT, positions_BT, past + length)
        sequence.x0_BTD = x_BTD.view_as(
            x_BTD
        )  # as itself it would be the first block's input twice, which compiles anew
        for place in self.config.contexts:
            x_BTD, handed = self.blocks[place.block](x_BTD, sequence.at(place.layer))
            sequence.take(handed)
        if cache is not None:
            cache.advance(length)
        return self.norm(x_BTD), sequence

    def _embed(self, tokens_BT: Tensor, positions_BT: Tensor, length: int) -> Tensor:
        x_BTD = self.embedding(tokens_BT)
        first = self.positions[0]
        if isinstance(first, LearnedPositions):
            first.check_length(length)
        return first.embed(x_BTD, positions_BT)  # type: ignore[operator,no-any-return]

    def _further_loss(self, state_BTD: Tensor, targets_BT: Tensor, sequence: Sequence) -> Tensor:
        """Weighted cross entropy of the tokens behind the next one, within the document."""
        assert self.further is not None
        tokens_BT, docs_BT = sequence.tokens_BT, sequence.mask.docs_BT
        total = state_BTD.new_zeros((), dtype=torch.float32)
        for k, depth in enumerate(self.further, start=1):
            ahead_BT, aims_BT = _shifted(tokens_BT, k, 0), _shifted(targets_BT, k, IGNORED)
            if docs_BT is not None:
                aims_BT = aims_BT.where(_shifted(docs_BT, k, -1) == docs_BT, IGNORED)
            state_BTD = depth(state_BTD, self.embedding(ahead_BT), sequence, self.further.layer)
            total = total + self.further.weight * self.loss(state_BTD, aims_BT).loss
        return total

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token of the vocabulary: (..., D) -> (..., V)."""
        return self.embedding.logits(hidden)

    def loss(self, hidden_BTD: Tensor, targets_BT: Tensor) -> LossSums:
        """Loss summed over targets that are not -100, without keeping the logits."""
        loss, nll = linear_cross_entropy(
            self.embedding.features(hidden_BTD).flatten(0, -2),
            self.embedding.head_weight,
            targets_BT.flatten(),
            z_loss=self.config.aux.z_weight,
            **self.embedding.head_options,
        )
        return LossSums(loss, nll, (targets_BT != IGNORED).sum())

    def loss_workspace(self, rows: int, dtype: torch.dtype, device: str) -> int:
        """Bytes that the loss of ``rows`` tokens needs for a moment, with products in ``dtype`` on a ``device`` of that type."""
        vocab, width = self.embedding.head_weight.shape
        return workspace_bytes(rows, vocab, width, dtype, device)

    def new_cache(self, batch: int, max_len: int) -> Cache:
        """An empty cache for ``batch`` sequences of up to ``max_len`` tokens, in the weights' dtype and device."""
        weight = self.embedding.weight
        rooms = [self.config.room(place) for place in self.config.contexts]
        return Cache.allocate(rooms, batch, max_len, weight.dtype, weight.device)


def _blocks(places: list[BuildContext]) -> list[nn.Module]:
    """The stored blocks, built once each; a shared feed-forward is one module in all of them."""
    blocks: list[nn.Module] = []
    for place in places:
        if place.block == len(blocks):
            shared = blocks[place.ffn_block].ffn if place.shares_ffn else None
            blocks.append(place.model.residual.build(place, shared))  # type: ignore[arg-type]
    return blocks


def _positions(places: list[BuildContext]) -> tuple[nn.ModuleList, list[int]]:
    """The distinct position encodings, and which one each place uses. The first is the model's own, at least at the input."""
    made: dict[str, int] = {}
    modules: list[Position] = []
    use: list[int] = []
    for place in places:
        width = place.attention.rotary_dim
        key = f"{place.position.model_dump_json()} {width if place.attention.positional else None}"
        if place.position.at_input:
            key = "input"
        elif not place.attention.positional:
            key = "none"
        if key not in made:
            made[key] = len(modules)
            modules.append(Position() if key == "none" else place.position.build(place))
        use.append(made[key])
    return nn.ModuleList(modules), use


def _shifted(x_BT: Tensor, by: int, fill: int) -> Tensor:
    """Each place gets what stands ``by`` places later, the end ``fill``."""
    return nn.functional.pad(x_BT[:, by:], (0, min(by, x_BT.shape[1])), value=fill)
