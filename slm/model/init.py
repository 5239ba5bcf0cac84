"""Initial weights: a function of the seed alone, the same on every device and at every world size."""

from __future__ import annotations

import math
from typing import Annotated

import pydantic
import torch
from torch import nn

from slm.config.registry import Registry
from slm.model.classes import classify
from slm.model.parts import ModelPart

RESIDUAL_OUTPUTS = (".o.weight", ".down.weight")
"""Matrices that write into the residual stream."""


class InitPart(ModelPart):
    """An initialisation."""

    def std(self, name: str, tensor_class: str, shape: torch.Size, layers: int) -> float:
        """Standard deviation of a matrix, embedding or head."""
        raise NotImplementedError

    def apply(self, model: nn.Module, layers: int, seed: int) -> None:
        """Initialise every parameter in place: gains 1, biases 0, the rest normal with `std`.

        Numbers are drawn on the CPU in fp32, in the order of the parameters, from one generator.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor_class, parameter in classify(model):
                if tensor_class in ("norm", "bias"):
                    parameter.fill_(1.0 if tensor_class == "norm" else 0.0)
                    continue
                std = self.std(name, tensor_class, parameter.shape, layers)
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))


init = Registry("init", InitPart)
InitSlot = Annotated[InitPart, init.field()]


@init.register("normal", paper="Radford et al. 2019 (GPT-2); Shoeybi et al. 2019, arXiv 1909.08053")
class Normal(InitPart):
    """One standard deviation for all; residual outputs divided by sqrt(2 layers)."""

    sigma: float = pydantic.Field(0.02, gt=0)
    scale_residual: bool = True

    def std(self, name: str, tensor_class: str, shape: torch.Size, layers: int) -> float:
        shrink = self.scale_residual and name.endswith(RESIDUAL_OUTPUTS)
        return self.sigma / math.sqrt(2 * layers) if shrink else self.sigma


@init.register("fan_in", paper="LeCun et al. 1998; He et al. 2015, arXiv 1502.01852")
class FanIn(InitPart):
    """gain / sqrt(columns) for matrices; residual outputs divided by sqrt(2 layers); embeddings ``embedding``."""

    gain: float = pydantic.Field(1.0, gt=0)
    embedding: float = pydantic.Field(0.02, gt=0)
    scale_residual: bool = True

    def std(self, name: str, tensor_class: str, shape: torch.Size, layers: int) -> float:
        if tensor_class in ("embedding", "head"):
            return self.embedding
        shrink = math.sqrt(2 * layers) if self.scale_residual and name.endswith(RESIDUAL_OUTPUTS) else 1.0
        return self.gain / math.sqrt(shape[-1]) / shrink
