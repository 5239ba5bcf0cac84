"""Prove an export: the same ids through our model and through transformers, in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from slm.config.errors import ConfigError
from slm.model.decoder import Decoder


@dataclass(frozen=True)
class Comparison:
    """Differences over all compared positions. ``kl``: mean KL(ours || theirs) in nats."""

    max_abs_diff: float
    logit_std: float
    kl: float
    top1_agreement: float
    positions: int


@torch.no_grad()
def compare(model: Decoder, path: Path, *, sequences: int = 4, seed: int = 0) -> Comparison:
    """Compare logits on random ids of several lengths, up to the whole context or 1,024 positions.

    Random ids reach every row of the embedding, and lengths up to the context every position; text would
    exercise less.
    """
    try:
        import transformers
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ConfigError("Verifying an export needs transformers: pip install 'slm[hf]'.") from None
    transformers.utils.logging.disable_progress_bar()
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    ours = model.float().eval()
    device, context = model.embedding.weight.device, min(model.config.context or 2048, 1024)
    generator = torch.Generator().manual_seed(seed)
    worst, agree, kl, positions, spread = 0.0, 0, 0.0, 0, 0.0
    for i in range(sequences):
        length = max(1, context * (i + 1) // sequences)
        ids = torch.randint(model.config.vocab_, (1, length), generator=generator)
        a = ours.logits(ours(ids.to(device))).cpu()[0]
        b = theirs(ids).logits[0]
        worst = max(worst, float((a - b).abs().max()))
        agree += int((a.argmax(-1) == b.argmax(-1)).sum())
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        kl += float((p.exp() * (p - q)).sum())
        spread = max(spread, float(a.std()))
        positions += length
    return Comparison(worst, spread, max(0.0, kl / positions), agree / positions, positions)
