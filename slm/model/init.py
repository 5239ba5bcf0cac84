"""Initial weights: a function of the seed alone, the same on every device and at every world size."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import pydantic
import torch
from torch import nn

from slm.config.registry import Registry
from slm.model.classes import classify, start_of
from slm.model.parts import ModelPart

if TYPE_CHECKING:
    from slm.model.config import Model

RESIDUAL_OUTPUTS = (".o.weight", ".down.weight", ".down")
"""Matrices that write into the residual stream."""


@dataclass(frozen=True)
class TensorInfo:
    """What an initialisation may know about a tensor."""

    name: str
    tensor_class: str
    shape: tuple[int, ...]
    dim: int
    layers: int
    """Blocks that run, one after the other."""
    block: int | None
    """Which block it stands in; None outside."""

    @property
    def hidden(self) -> bool:
        """Whether it stands in a block."""
        return self.block is not None

    @property
    def fan_in(self) -> int:
        return self.shape[-1]

    @property
    def writes_residual(self) -> bool:
        return self.hidden and self.name.endswith(RESIDUAL_OUTPUTS)


def describe_tensor(model: "Model", name: str, tensor_class: str, shape: torch.Size) -> TensorInfo:
    """`TensorInfo` of a parameter of a decoder."""
    found = re.match(r"(blocks|further)\.(\d+)\.", name)
    block = int(found[2]) + (model.layers if found[1] == "further" else 0) if found else None
    return TensorInfo(name, tensor_class, tuple(shape), model.dim, len(model.contexts), block)


class InitPart(ModelPart):
    """An initialisation."""

    scales_with_width: ClassVar[bool] = False
    """Whether hidden matrices start smaller in wider models already."""
    fits_mup: ClassVar[bool] = False
    """Whether embeddings start alike at every width."""
    truncate: float | None = pydantic.Field(None, gt=0)
    """Draw again what lies beyond so many standard deviations; None keeps all."""

    def std(self, tensor: TensorInfo) -> float:
        """Standard deviation of a matrix, embedding or head."""
        raise NotImplementedError

    def apply(self, module: nn.Module, model: "Model", seed: int) -> None:
        """Initialise every parameter in place: gains 1, biases 0, scalars where their modules say, the rest normal with
        `std`, convolutions with the variance 1 / (3 kernel) that torch gives them.

        Numbers are drawn on the CPU in fp32, in the order of the parameters, from one generator.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor_class, parameter in classify(module):
                if tensor_class in ("norm", "bias", "scalar"):
                    parameter.copy_(start_of(module, name, parameter, generator))
                    continue
                tensor = describe_tensor(model, name, tensor_class, parameter.shape)
                std = self.std(tensor) if tensor_class != "conv" else (3 * tensor.fan_in) ** -0.5
                std *= model.parametrization.init_factor(model, tensor_class, tensor.hidden)
                drawn = torch.empty(parameter.shape)
                if self.truncate is None:
                    drawn.normal_(0.0, std, generator=generator)
                else:
                    bound = self.truncate * std
                    nn.init.trunc_normal_(drawn, 0.0, std, -bound, bound, generator=generator)
                parameter.copy_(drawn)


init = Registry("init", InitPart)
InitSlot = Annotated[InitPart, init.field()]


class _Residual(InitPart):
    scale_residual: bool = True
    """Divide residual outputs by sqrt(2 layers) (Radford et al. 2019, GPT-2)."""

    def shrink(self, tensor: TensorInfo) -> float:
        """Factor on residual outputs."""
        return (2 * tensor.layers) ** -0.5 if self.scale_residual and tensor.writes_residual else 1.0


@init.register("normal", paper="Radford et al. 2019 (GPT-2); Shoeybi et al. 2019, arXiv 1909.08053")
class Normal(_Residual):
    """One standard deviation for all, or another one for the matrices in blocks; residual outputs divided by sqrt(2 layers)."""

    fits_mup = True
    sigma: float = pydantic.Field(0.02, gt=0)
    """Standard deviation."""
    hidden: float | None = pydantic.Field(None, gt=0)
    """Standard deviation of what stands in a block; None: ``sigma``. MiniCPM's is sigma / sqrt(dim / 256)."""

    def std(self, tensor: TensorInfo) -> float:
        sigma = self.hidden if self.hidden is not None and tensor.hidden else self.sigma
        return sigma * self.shrink(tensor)


@init.register("fan_in", paper="LeCun et al. 1998; He et al. 2015, arXiv 1502.01852")
class FanIn(_Residual):
    """gain / sqrt(columns) for matrices; residual outputs divided by sqrt(2 layers); embeddings ``embedding``."""

    scales_with_width = True
    fits_mup = True
    gain: float = pydantic.Field(1.0, gt=0)
    """Standard deviation of a matrix times the root of its columns."""
    embedding: float = pydantic.Field(0.02, gt=0)
    """Standard deviation of embeddings and head."""

    def std(self, tensor: TensorInfo) -> float:
        if tensor.tensor_class in ("embedding", "head"):
            return self.embedding
        return self.gain / math.sqrt(tensor.fan_in) * self.shrink(tensor)


@init.register("inv_sqrt_dim", paper="Allal et al. 2025 (SmolLM2), arXiv 2502.02737")
class InverseRoot(_Residual):
    """1 / sqrt(dim) for all."""

    scales_with_width = True
    scale_residual: bool = False

    def std(self, tensor: TensorInfo) -> float:
        return tensor.dim**-0.5 * self.shrink(tensor)


@init.register(
    "small", paper="Nguyen & Salazar 2019, arXiv 1910.05895; Black et al. 2022 (GPT-NeoX-20B), arXiv 2204.06745"
)
class Small(InitPart):
    """sqrt(2 / (5 dim)) for all; residual outputs ``residual`` / (layers sqrt(dim))."""

    scales_with_width = True
    residual: float = pydantic.Field(2.0, gt=0)
    """2 in GPT-NeoX, hence in Pythia; 1 in TinyLlama."""

    def std(self, tensor: TensorInfo) -> float:
        if tensor.writes_residual:
            return self.residual / (tensor.layers * math.sqrt(tensor.dim))
        return math.sqrt(2 / (5 * tensor.dim))


@init.register("openelm", paper="Mehta et al. 2024 (OpenELM), arXiv 2404.14619; corenet")
class OpenELM(InitPart):
    """1 / sqrt(columns), embeddings 1 / sqrt(dim), residual outputs 1 / sqrt(2 layers dim) (corenet)."""

    scales_with_width = True

    def std(self, tensor: TensorInfo) -> float:
        if tensor.writes_residual:
            return (2 * tensor.layers * tensor.dim) ** -0.5
        return (tensor.dim if tensor.tensor_class in ("embedding", "head") else tensor.fan_in) ** -0.5


@init.register("olmo2", paper="OLMo team 2024 (OLMo 2), arXiv 2501.00656")
class OLMo2(InitPart):
    """One standard deviation for all, whatever width and depth, cut at three of them."""

    fits_mup = True
    truncate: float | None = pydantic.Field(3.0, gt=0)
    sigma: float = pydantic.Field(0.02, gt=0)
    """Standard deviation."""

    def std(self, tensor: TensorInfo) -> float:
        return self.sigma


@init.register("mitchell", paper="Groeneveld et al. 2024 (OLMo), arXiv 2402.00838")
class Mitchell(InitPart):
    """1 / sqrt(dim), residual outputs 1 / sqrt(2 columns (layer + 1)), cut at three standard deviations (OLMo 1)."""

    scales_with_width = True
    truncate: float | None = pydantic.Field(3.0, gt=0)

    def std(self, tensor: TensorInfo) -> float:
        if tensor.writes_residual and tensor.block is not None:
            return (2 * tensor.fan_in * (tensor.block + 1)) ** -0.5
        return tensor.dim**-0.5


@init.register("dclm", paper="Li et al. 2024 (DataComp-LM), arXiv 2406.11794; open_lm")
class DCLM(InitPart):
    """1 / sqrt(columns), embeddings 1 / sqrt(dim), residual outputs also / sqrt(2 (layer + 1)), cut at three (open_lm)."""

    scales_with_width = True
    truncate: float | None = pydantic.Field(3.0, gt=0)

    def std(self, tensor: TensorInfo) -> float:
        if tensor.tensor_class in ("embedding", "head"):
            return tensor.dim**-0.5
        depth = 2 * (tensor.block + 1) if tensor.writes_residual and tensor.block is not None else 1
        return (tensor.fan_in * depth) ** -0.5
