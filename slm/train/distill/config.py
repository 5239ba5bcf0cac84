"""`Distill`: which teacher, and how much it counts. Part of the identity, but for where things lie."""

from __future__ import annotations

from typing import Literal, Self

import pydantic

from slm.config.base import Config
from slm.config.errors import ConfigError, RunError


class Distill(Config):
    """Knowledge distillation: loss = (1 - weight) cross entropy + weight T^2 divergence from a teacher, per target.

    Hinton et al. 2015, arXiv 1503.02531. T^2 keeps the size of the gradient when T changes.
    """

    teacher: str | None = None
    """A run, a checkpoint, or a Hugging Face directory that `slm model import` can read; it must have the student's tokenizer."""
    teacher_hash: str | None = None
    """Names the teacher's weights. Filled in when the run is composed; the identity has it in place of the path."""
    temperature: float = pydantic.Field(1.0, gt=0)
    """T: both models' logits are divided by it before the softmax."""
    weight: float = pydantic.Field(0.5, gt=0, le=1)
    """Share of the teacher's term; 1 leaves the text's own tokens out."""
    divergence: Literal["forward", "reverse", "js"] = "forward"
    """forward: KL(teacher | student), covers all that the teacher says; reverse: KL(student | teacher), keeps to what the teacher
    is sure of (Gu et al. 2023, arXiv 2306.08543); js: Jensen-Shannon, the mean of both against their mixture (Agarwal et al.
    2023, arXiv 2306.13649)."""
    top_k: int | None = pydantic.Field(None, gt=0)
    """Tell only the teacher's k most probable tokens apart, and take all others together as one outcome; None: all tokens."""
    cache: str | None = None
    """A directory of `slm distill cache`, to be read in place of running the teacher."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.teacher is None and self.cache is None:
            raise ConfigError("train.distill: name a teacher (train.distill.teacher=PATH) or a cache of one.")
        if self.cache is not None and self.top_k is None:
            raise ConfigError(
                "train.distill: a cache holds a teacher's most probable tokens only, so train.distill.top_k must be given."
            )
        return self

    def settled(self) -> Self:
        """With the teacher's weights named, from the teacher itself or from the cache."""
        if self.teacher is not None:
            return self.with_(teacher_hash=weights_named(self.teacher, "train.distill.teacher"))
        from slm.train.distill.cache import read_header

        return self.with_(teacher_hash=read_header(self.cache or "")["teacher"])


def weights_named(path: str, field: str) -> str:
    """The name of the weights at a path. Raises `ConfigError`, with the field that asked for them, if there are none."""
    from slm.checkpoint.fingerprint import weights_hash

    try:
        return weights_hash(path)
    except RunError as error:
        raise ConfigError(f"{field}: {error}") from None
