"""What a step minimises: model and loss as one module, so that DDP, FSDP and compile see a single forward pass.

The module's inputs are made outside of it, by `LossModule.inputs`: what a teacher says of a batch comes in as tensors, and
the teacher itself is no part of what is wrapped, sharded, trained or saved. `slm.train.distill.loss.loss_module` chooses.
"""

from __future__ import annotations

from torch import Tensor, nn

from slm.data.loader import Batch
from slm.model.decoder import Decoder


class LossModule(nn.Module):
    """Cross entropy of the next token, with whatever the model's parts add to it."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """What ``forward`` takes, from a batch on the device."""
        return batch.tokens_BT, batch.targets_BT, batch.positions_BT, batch.docs_BT

    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor, positions_BT: Tensor, docs_BT: Tensor, *answer: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, cross entropy, divergence from a teacher), each summed over the targets; only the loss has a gradient. Outside of
        training mode the loss is the cross entropy alone."""
        if not self.training:
            sums = self.model.loss(self.model(tokens_BT, positions_BT=positions_BT, docs_BT=docs_BT), targets_BT)
        else:
            sums = self.model.training_loss(tokens_BT, targets_BT, positions_BT=positions_BT, docs_BT=docs_BT)
        return sums.loss, sums.nll, sums.nll.new_zeros(())
