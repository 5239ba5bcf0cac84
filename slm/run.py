"""`Run`: one experiment, whole. Joins the schema that each room keeps beside its own code.

Identity and implementation are apart. ``model``, ``tokenizer``, ``data`` and ``train`` define the
experiment, and `Run.identity` is their hash. ``impl``, ``log`` and ``finish`` say how it is executed,
watched and wound up; none of them may change the result beyond rounding.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import pydantic

from slm.config.base import Config
from slm.config.errors import ConfigError
from slm.config.identity import fingerprint
from slm.data.config import Data
from slm.data.tokenizer import TokenizerSlot
from slm.model.config import Model
from slm.train.config import Impl, Log, Train, what_counts

if TYPE_CHECKING:
    from slm.cost.cost import ModelCost

IDENTITY = ("model", "tokenizer", "data", "train")
"""The sections that define an experiment."""


LONGEST = 255
"""Bytes of a file name, on the usual file systems."""
MOST_THREADS = 1024
"""Beyond that a process has no use for threads, and may not get them."""


class Finish(Config):
    """What is made of a run once it is trained."""

    baselines: bool = True
    """Measure ``gzip -9`` and ``xz -9`` on the same held-out bytes."""
    samples: int = pydantic.Field(3, ge=0)
    """Continuations of held-out documents to sample."""
    export: tuple[Literal["hf"], ...] = ("hf",)
    """Export targets, each verified after writing."""
    report: bool = True
    """Write ``report.html``."""

    def beyond(self, made: Finish) -> list[str]:
        """What is asked for here and wasn't there."""
        wanted = [f"an export to {target}" for target in self.export if target not in made.export]
        wanted += [f"{self.samples} samples"] if self.samples > made.samples else []
        return wanted + [name for name in ("baselines", "report") if getattr(self, name) and not getattr(made, name)]

    def joined(self, made: Finish) -> Finish:
        """What either asks for."""
        return Finish(
            baselines=self.baselines or made.baselines,
            samples=max(self.samples, made.samples),
            export=tuple(dict.fromkeys((*made.export, *self.export))),
            report=self.report or made.report,
        )


class Run(Config):
    """An experiment and how to execute it."""

    name: str = "run"
    """What it is called, and its directory under ``runs/``; slashes make directories of directories."""
    plugins: tuple[str, ...] = ()
    model: Model
    tokenizer: TokenizerSlot
    data: Data
    train: Train
    impl: Impl = Impl()
    log: Log = Log()
    finish: Finish = Finish()
    notes: tuple[str, ...] = ()
    """What composition changed on the way: part swaps, cleared siblings."""

    @pydantic.model_validator(mode="after")
    def _join_sections(self) -> Self:
        vocab, context = self.tokenizer.vocab_size, self.data.seq_len
        model = self.model
        if model.vocab is not None and model.vocab < vocab:
            raise ConfigError(
                f"model.vocab is {model.vocab}, but the tokenizer has {vocab} tokens: ids above {model.vocab - 1} would "
                f"have no embedding. Leave model.vocab out, or set it to {vocab} or more."
            )
        if model.context is not None and model.context < context:
            raise ConfigError(
                f"model.context is {model.context}, but data.seq_len is {context}: rows would be longer than the model's "
                f"context. Lower data.seq_len or raise model.context."
            )
        if model.vocab is None or model.context is None:
            joined = model.with_(vocab=model.vocab or vocab, context=model.context or context)
            self.__dict__["model"] = joined  # the model is frozen for users; joining sections is part of making it
        self.__dict__["train"] = self.train.settled(self.impl.device)
        if (self.impl.threads or 0) > MOST_THREADS:
            raise ConfigError(
                f"impl.threads={self.impl.threads} is more than the {MOST_THREADS} that one process can make use of. Leave it out for torch's "
                f"choice, or set the number of cores, as `slm doctor` shows it."
            )
        if self.log.activations and self.impl.compile == "whole":
            raise ConfigError(
                "log.activations looks at each block, and impl.compile=whole leaves none to look at. Set impl.compile=blocks."
            )
        if self.train.batch_tokens % context:
            raise ConfigError(
                f"train.batch_tokens={self.train.batch_tokens} is no multiple of data.seq_len={context}: a global batch "
                f"is a whole number of rows. Nearest: {max(1, round(self.train.batch_tokens / context)) * context}."
            )
        return self

    def costs(self) -> ModelCost:
        """What the model costs on this run's rows: tokens attend within ``data.seq_len``, however long the model's context is."""
        return self.model.costs(self.data.seq_len)

    @cached_property
    def identity(self) -> str:
        """16 hex digits that name the experiment: equal for runs that must give equal results."""
        return fingerprint(self.experiment())

    def experiment(self) -> dict[str, Any]:
        """The identity-defining sections as plain data."""
        sections = {section: dump for section, dump in self.model_dump(mode="json").items() if section in IDENTITY}
        return sections | {"train": what_counts(sections["train"])}


def check_name(run: Run) -> None:
    """Raise `ConfigError` if a run that is about to start can't have its directory under ``runs/``. Without a say of its own the name is
    no business of whoever reads a run."""
    parts = run.name.split("/")
    if run.log.dir is not None:
        return
    if any(part.strip() in ("", ".", "..") for part in parts) or any(c < " " for c in run.name):
        raise ConfigError(
            f"name={run.name!r} can't be the name of a directory under runs/. Give the run a name such as name=try-1; log.dir=PATH puts it "
            f"anywhere else."
        )
    longest = max(parts, key=lambda part: len(part.encode()))
    if len(longest.encode()) > LONGEST:
        raise ConfigError(
            f"name: {longest[:40]!r}... has {len(longest.encode())} bytes, and the name of a directory under runs/ has at most {LONGEST}. "
            f"Choose a shorter one (name=...)."
        )
