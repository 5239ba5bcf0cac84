"""Parameters and optimisers that several tests take."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from slm.model.classes import classify
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.train.optim import SGD, SOAP, Adafactor, AdamMini, AdamW, Lion, Muon, NamedParameter, OptimPart, ScheduleFree

PARTS: dict[str, OptimPart] = {
    "adamw": AdamW(lr=0.01),
    "adamw cautious": AdamW(lr=0.01, cautious=True, weight_decay=1.0),
    "adamw independent": AdamW(lr=0.01, decay="independent", weight_decay=0.01),
    "muon": Muon(),
    "muon variants": Muon(scale="aspect", lr=0.02, rest_lr=0.003, polynomial="polar_express", nesterov=False, cautious=True),
    "lion": Lion(),
    "lion cautious": Lion(cautious=True),
    "soap": SOAP(frequency=3),
    "soap one-sided": SOAP(frequency=2, max_dim=8, cautious=True),
    "adam_mini": AdamMini(lr=0.01),
    "adafactor": Adafactor(lr=0.01),
    "adafactor momentum": Adafactor(lr=0.01, momentum=0.9),
    "schedule_free": ScheduleFree(lr=0.01),
    "sgd": SGD(),
}  # fmt: skip
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "q": ("matrix", (12, 8)),
    "k": ("matrix", (4, 8)),
    "v": ("matrix", (4, 8)),
    "up": ("matrix", (8, 12)),
    "up2": ("matrix", (8, 12)),
    "o": ("matrix", (8, 8)),
    "odd": ("matrix", (7, 5)),
    "single": ("matrix", (1, 6)),
    "experts": ("matrix", (3, 6, 10)),
    "square experts": ("matrix", (2, 6, 6)),
    "embedding": ("embedding", (11, 8)),
    "head": ("head", (11, 8)),
    "taps": ("conv", (8, 4)),
    "gain": ("norm", (8,)),
    "bias": ("bias", (3,)),
    "scalar": ("scalar", (1,)),
}
"""Name -> tensor class, shape: what shards unevenly or leaves a process without rows is among them."""


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random numbers in the shapes; gradients of a size that varies."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator, dtype=torch.float64) * (0.3 + seed % 3)).to(dtype)
        for name, (_, shape) in SHAPES.items()
    }


def parameters(dtype: torch.dtype = torch.float32) -> list[NamedParameter]:
    """One parameter for each shape."""
    start = tensors(1000, dtype)
    return [NamedParameter(n, SHAPES[n][0], torch.nn.Parameter(t)) for n, t in start.items()]


def step(
    optimizers: Iterable[torch.optim.Optimizer],
    named: list[NamedParameter],
    grads: dict[str, torch.Tensor],
    bad: float | None = None,
) -> None:
    """One step as the trainer takes it."""
    for p in named:
        p.tensor.grad = grads[p.name].clone().to(p.tensor.dtype)
    for optimizer in optimizers:
        if bad is not None:
            optimizer.found_inf, optimizer.grad_scale = torch.tensor(bad), None  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def state_of(optimizers: Iterable[torch.optim.Optimizer]) -> list[dict[str, torch.Tensor]]:
    """Copies of all state."""
    return [{k: v.clone() for k, v in s.items()} for o in optimizers for s in o.state.values()]


def decoder_parameters() -> list[NamedParameter]:
    """Those of a small decoder."""
    model = Decoder(Model(dim=32, layers=2, vocab=40, norm="layernorm", embedding="untied")).init_weights(0)
    return [NamedParameter(*found) for found in classify(model)]
