"""The ``data`` section: which text in which proportions, cut into rows of which length, in which order."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import pydantic

from slm.config.base import Config, Seed
from slm.config.errors import ConfigError
from slm.data.ingest.config import Curation
from slm.data.plan.mixture import Mixture, Order, Policy, Stage
from slm.data.sources import SourcePart, Stdlib, source

OptionalSource = Annotated[SourcePart | None, source.field(optional=True)]


class Member(Config):
    """One source of a mixture."""

    exclusive: ClassVar = (("source", "store"),)

    source: OptionalSource = None
    """Text, tokenised when the run needs it."""
    store: str | None = None
    """A token store that exists already: a directory, or a URL."""
    filters: tuple[str, ...] = ()
    """Predicates on this source's columns, beside those of ``data.filters``."""
    max_epochs: float | None = pydantic.Field(None, gt=0)
    """How often its text may be repeated; None: as often as the mixture asks for."""

    @pydantic.model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.source is None) == (self.store is None):
            raise ConfigError("A member of data.sources needs either a source or a store.")
        if self.store is not None and self.filters:
            raise ConfigError(f"The store {self.store} is made already: filters belong to `slm data tokenize`.")
        return self


class Data(Curation):
    """What the model reads. Part of the identity."""

    exclusive: ClassVar = (("source", "store", "sources"), ("source", "mixture"), ("store", "mixture"))

    source: OptionalSource = None
    """The only source of text; ``stdlib`` if nothing else is given."""
    store: str | None = None
    """A token store that exists already, instead of a source: a directory, or a URL."""
    sources: dict[str, Member] | None = None
    """Several sources, by names of your own; ``mixture`` says how much of each."""
    mixture: tuple[Stage, ...] = ()
    """Stages of the run with the share of rows that each source gets in them."""
    on_exhaust: Literal["error", "renormalise", "stop"] = "error"
    """When a source reaches its ``max_epochs``: refuse the run, give its share to the others, or end the run there."""
    seq_len: int = pydantic.Field(512, ge=8)
    """Tokens per row."""
    packing: Policy = "best_fit"
    """``best_fit`` keeps documents whole where they fit into a row; ``concat`` cuts the stream every ``seq_len``; ``pad``
    gives every document rows of its own; ``crop`` fills rows by cutting documents and drops the rest."""
    window: int = pydantic.Field(16384, gt=0)
    """Documents packed together."""
    order: Order = Order()
    """Rows in a random order over everything, or over blocks of neighbours (for stores on a network)."""
    seed: Seed = 0
    """Seed of the row order: a new permutation every epoch."""

    @pydantic.model_validator(mode="after")
    def _members(self) -> Self:
        given = [name for name in self.exclusive[0] if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(
                f"data: {' and '.join(given)} can't stand together; name several sources under data.sources."
            )
        if not given:
            self.__dict__["source"] = Stdlib()
        names = list(self.members)
        if len(names) > 1 and not self.mixture:
            raise ConfigError(
                f"data.mixture: say how much of each source ({', '.join(names)}), such as [{{weights: {{{names[0]}: 0.7, ...}}}}]."
            )
        if self.mixture and self.sources is None:
            raise ConfigError("data.mixture needs data.sources: there is only one source.")
        return self

    @property
    def members(self) -> dict[str, Member]:
        """The sources by name; a single one has its part's name."""
        if self.sources is not None:
            return self.sources
        if self.store is not None:
            return {"store": Member(store=self.store)}
        assert self.source is not None
        return {self.source.part_name: Member(source=self.source)}

    @property
    def mixing(self) -> Mixture | None:
        """The mixture, whole; None for a single source without a cap."""
        caps = {name: m.max_epochs for name, m in self.members.items() if m.max_epochs is not None}
        stages = self.mixture or (Stage(weights={next(iter(self.members)): 1.0}),)
        if not self.mixture and not caps:
            return None
        return Mixture(stages=stages, max_epochs=caps, on_exhaust=self.on_exhaust)

    def curation(self, member: Member) -> Curation:
        """What decides which documents of a member are kept."""
        settings = {name: getattr(self, name) for name in Curation.model_fields}
        return Curation(**settings | {"filters": (*self.filters, *member.filters)})
