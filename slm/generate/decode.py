"""Autoregressive decoding with temperature, top-k and nucleus sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slm.config.errors import ConfigError
from slm.model.decoder import Decoder

COLDEST = 1e-6
"""Below it the likeliest token has all of the probability, and fp32 can't divide any more."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0 takes the likeliest; ``top_k`` 0 and ``top_p`` 1 cut nothing."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        fits = 0 <= self.temperature < math.inf and self.top_k >= 0 and 0 < self.top_p <= 1  # nan is none of it
        if not fits:
            raise ConfigError(
                f"Sampling needs a finite temperature >= 0, top_k >= 0 and 0 < top_p <= 1; these are {self.temperature}, {self.top_k} and "
                f"{self.top_p}."
            )
        if not -(2**63) <= self.seed < 2**64:
            raise ConfigError(
                f"seed={self.seed} doesn't fit into the 64 bits of a seed. Take a number from 0 to {2**64 - 1}."
            )

    def pick(self, logits_V: Tensor, generator: torch.Generator) -> int:
        """An id drawn from the (cut) distribution."""
        logits_V = logits_V.float().cpu()
        if self.temperature < COLDEST:
            return int(logits_V.argmax())
        probabilities_V = (logits_V / self.temperature).softmax(-1)
        ordered, ids = probabilities_V.sort(descending=True)
        if self.top_k:
            ordered[self.top_k :] = 0
        # Nucleus (Holtzman et al. 2020, arXiv 1904.09751): the smallest set that holds top_p of the mass.
        ordered[ordered.cumsum(-1) - ordered >= self.top_p] = 0
        return int(ids[torch.multinomial(ordered, 1, generator=generator)])


@torch.no_grad()
def generate(
    model: Decoder,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    context: int | None = None,
    sampling: Sampling | None = None,
    stop: int | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Yield new ids one by one, until ``stop`` (not yielded) or ``max_new_tokens``.

    Past ``context`` the oldest tokens are forgotten: half of the context is kept and read again, so
    that positions stay within what was trained.

    Args:
        prompt: at least one id; begin with end-of-text to start a document.
        context: tokens that are read at once; the model's context by default. `slm.checkpoint.Restored.context` is what it was trained on.
        use_cache: keep keys and values of past tokens; without, every step reads all again (same ids, slower).
    """
    if not prompt:
        raise ConfigError("Generation needs at least one prompt token.")
    sampling = sampling or Sampling()
    generator = torch.Generator().manual_seed(sampling.seed)
    device, context = model.embedding.weight.device, model.config.window(context)
    ids = list(prompt)[-context:]
    room = min(context, len(ids) + max_new_tokens)  # a context of 131,072 would take gigabytes
    cache = model.new_cache(1, room) if use_cache else None
    unread = ids
    for _ in range(max_new_tokens):
        if len(ids) > context:
            ids = ids[-(context // 2) :]
            cache, unread = model.new_cache(1, context) if use_cache else None, ids
        tokens = torch.tensor([unread if use_cache else ids], device=device)
        hidden_BTD = model(tokens, cache=cache)
        token = sampling.pick(model.logits(hidden_BTD[0, -1]), generator)
        if token == stop:
            return
        yield token
        ids.append(token)
        unread = [token]


def pick_prompts(documents: Sequence[np.ndarray], count: int, length: int) -> list[list[int]]:
    """Beginnings of ``count`` documents, spread evenly over the list, ``length`` ids each."""
    step = max(1, len(documents) // max(1, count))
    return [doc[:length].tolist() for doc in documents[::step][:count]]
