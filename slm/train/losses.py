"""What is wrapped, compiled and called: a model that ends in its loss."""

from __future__ import annotations

from torch import Tensor, nn

from slm.model.decoder import Decoder


class LossModule(nn.Module):
    """Decoder and loss as one module, so that parallelism and compilation see a single forward pass."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor, positions_BT: Tensor, docs_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(loss, cross entropy), both summed over targets; they differ in training only, by what parts of the model add."""
        sums = self.model.training_loss(tokens_BT, targets_BT, positions_BT=positions_BT, docs_BT=docs_BT)
        return sums.loss, sums.nll
