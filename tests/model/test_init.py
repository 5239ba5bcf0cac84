from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from slm.model.classes import classify
from slm.model.config import Model
from slm.model.decoder import Decoder


def stds(init: dict) -> dict[str, float]:
    model = Model(dim=128, layers=4, vocab=512, init=init, embedding="untied")
    return {n: float(p.detach().std()) for n, p in Decoder(model).init_weights(0).named_parameters() if p.ndim == 2}


def test_normal_reaches_its_std_in_every_matrix() -> None:
    for name, std in stds({"name": "normal", "sigma": 0.02}).items():
        wanted = 0.02 / math.sqrt(8) if name.endswith((".o.weight", ".down.weight")) else 0.02
        assert std == pytest.approx(wanted, rel=0.05), name


def test_fan_in_reaches_its_std() -> None:
    found = stds({"name": "fan_in", "gain": 0.5, "embedding": 0.1})
    assert found["embedding.weight"] == pytest.approx(0.1, rel=0.05)
    assert found["blocks.0.attention.q.weight"] == pytest.approx(0.5 / math.sqrt(128), rel=0.05)


def test_same_seed_same_weights_and_another_seed_others() -> None:
    model = Model(dim=32, layers=2, vocab=40)
    a, b, c = (dict(Decoder(model).init_weights(s).named_parameters()) for s in (0, 0, 1))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["embedding.weight"], c["embedding.weight"])


def test_a_parameter_of_no_class_is_an_error() -> None:
    class Stray(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    model = Decoder(Model(dim=32, layers=1, vocab=40))
    model.blocks[0].extra = Stray()
    with pytest.raises(ValueError, match=r"blocks\.0\.extra\.scale"):
        model.init_weights(0)
    with pytest.raises(ValueError, match="Stray"):
        list(classify(model))
