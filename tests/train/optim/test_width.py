"""Every optimiser's rate carries over to wider models under muP."""

from __future__ import annotations

import pytest

from slm.config.errors import ConfigError
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.train.coord_check import coord_check
from slm.train.optim import SGD, SOAP, Adafactor, AdamMini, Lion, Muon, OptimPart, ScheduleFree
from slm.train.state import named_parameters

MODEL = Model(
    dim=32, layers=3, vocab=64, context=64, attention={"name": "gqa", "heads": 4, "kv_heads": 2}, embedding="untied",
    init={"name": "fan_in", "embedding": 0.1}, parametrization={"name": "mup", "base_dim": 32},
)  # fmt: skip
CASES: dict[str, tuple[OptimPart, int]] = {
    "lion": (Lion(lr=0.005, weight_decay=0.0), 4),
    "adam_mini": (AdamMini(lr=0.01, weight_decay=0.0), 4),
    "adafactor": (Adafactor(lr=0.01, weight_decay=0.0), 4),
    "schedule_free": (ScheduleFree(lr=0.01, weight_decay=0.0), 4),
    "soap": (SOAP(lr=0.02, weight_decay=0.0, frequency=2), 40),
    "muon aspect": (Muon(scale="aspect", lr=0.05, rest_lr=0.01, weight_decay=0.0), 4),
}
"""Part, rows of the batch: SOAP needs more tokens than the widest matrix has rows."""


@pytest.mark.parametrize("case", CASES)
def test_activations_move_alike_at_every_width(case: str) -> None:
    part, rows = CASES[case]
    found = coord_check(MODEL, part, [32, 128], rows=rows, length=24)
    assert found.verdicts["first block"] == found.verdicts["last block"] == "flat", found.exponents
    assert found.verdicts["logits"] != "growing", found.exponents


def test_sgd_has_no_rates_for_it_and_says_so() -> None:
    with pytest.raises(ConfigError, match=r"train\.optim=sgd doesn't go with this model\.parametrization"):
        SGD().build(named_parameters(Decoder(MODEL.with_(dim=64))))
