"""What every optimiser part has: rates, weight decay, rules, and the groups that follow from them.

Weight decay applies to matrices and the head only: decaying norms, biases or embeddings costs quality or stability and is what
several peers do by accident. Each parameter group keeps its peak rate under ``peak_lr``; the schedule scales it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import pydantic

from slm.config.errors import ConfigError
from slm.config.registry import Part, Registry
from slm.train.optim.rules import DECAYED, Rule, changed, check_matches

if TYPE_CHECKING:
    import torch

    from slm.model.parametrization import Rates


T = TypeVar("T")


@dataclass(frozen=True)
class NamedParameter:
    """A parameter, its dotted name, and its tensor class."""

    name: str
    tensor_class: str
    tensor: "torch.nn.Parameter"
    rates: "Rates | None" = None
    """Factors of the model's parametrisation; None: none."""

    def factor(self, name: str) -> float:
        """A factor by its name in `slm.model.parametrization.Rates`."""
        return 1.0 if self.rates is None else getattr(self.rates, name)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Chosen:
    """A parameter and what the part and its rules give it, before the parametrisation's factors."""

    parameter: NamedParameter
    lr: float
    weight_decay: float
    elementwise: bool = False
    """A rule keeps it from being treated as a matrix."""
    blocks: int = 1


class OptimPart(Part):
    """An optimiser."""

    lr: float = pydantic.Field(1e-3, gt=0)
    """Peak learning rate; the schedule scales it."""
    weight_decay: float = pydantic.Field(0.1, ge=0)
    """Decoupled weight decay of matrices and the head."""
    decay: Literal["times_lr", "independent"] = "times_lr"
    """A step takes away the share ``lr * weight_decay`` (times_lr), or ``weight_decay`` times the schedule's factor alone, which
    doesn't change when the rate is tuned (independent: Wortsman et al. 2023, arXiv 2309.14322; then about 1e-4)."""
    rules: tuple[Rule, ...] = ()
    """Exceptions by name or tensor class: see `slm.train.optim.rules`."""

    def build(self, parameters: list[NamedParameter]) -> list[torch.optim.Optimizer]:
        """One optimiser or more that together hold every parameter exactly once.

        Raises:
            ConfigError: a rule that matches nothing; what the optimiser can't do for this model.
        """
        raise NotImplementedError

    def state_numbers(self, parameters: list[NamedParameter]) -> int:
        """fp32 numbers of optimiser state for these parameters (of any device, also meta): exact, and nothing is allocated."""
        import torch

        from slm.train.optim.steps.guarded import init_state

        ghosts = [replace(p, tensor=torch.nn.Parameter(torch.empty(p.tensor.shape, device="meta"))) for p in parameters]
        optimizers = self.build(ghosts)
        init_state(optimizers)
        return sum(t.numel() for o in optimizers for state in o.state.values() for t in state.values())

    def choose(self, parameters: list[NamedParameter]) -> list[Chosen]:
        """Rate and decay of every parameter, with the rules applied."""
        check_matches(self.rules, parameters)
        return [self._choose(p) for p in parameters]

    def _choose(self, p: NamedParameter) -> Chosen:
        rules = [rule for rule in self.rules if rule.matches(p)]
        elementwise = _last([rule.elementwise for rule in rules], False)
        blocks = _last([rule.blocks for rule in rules], 1)
        lr, decay = self.base_lr(p, elementwise), self.weight_decay if DECAYED[p.tensor_class] else 0.0
        for rule in rules:
            lr, decay = changed(lr, rule.lr), changed(decay, rule.weight_decay)
        return Chosen(p, lr, decay, elementwise, blocks)

    def base_lr(self, p: NamedParameter, elementwise: bool) -> float:
        """Peak rate before rules."""
        return self.lr

    def numbers(
        self, c: Chosen, rate: Literal["lr", "orthogonal_lr", "none"] = "lr", **further: float
    ) -> dict[str, float]:
        """``lr`` and ``weight_decay`` of a parameter's group, with the parametrisation's factors; ``rate`` names the one on the
        rate. The decay's factor undoes it, so that what a step takes away doesn't depend on the width."""
        factor = 1.0 if rate == "none" else c.parameter.factor(rate)
        lr = c.lr * factor
        decay = c.weight_decay * (c.parameter.factor("weight_decay") if rate == "lr" else 1 / factor)
        if self.decay == "independent":
            decay = c.weight_decay / lr if lr else 0.0
        return {"lr": lr, "weight_decay": decay, **further}


optim = Registry("optim", OptimPart)
OptimSlot = Annotated[OptimPart, optim.field()]


def _last(values: Sequence[T | None], default: T) -> T:
    """The last value that is given."""
    return next((value for value in reversed(values) if value is not None), default)


def without(part: OptimPart, chosen: list[Chosen], *options: str) -> list[Chosen]:
    """``chosen``, if no rule sets an option (``blocks``, ``elementwise``) that the optimiser has no use for; else `ConfigError`."""
    for c in chosen:
        for option, unset in (("blocks", 1), ("elementwise", False)):
            if option in options and getattr(c, option) != unset:
                raise ConfigError(
                    f"train.optim.rules: {part.part_name} has no use for {option}={getattr(c, option)} at {c.parameter.name!r}: it doesn't "
                    f"treat matrices in a way of their own{'' if option == 'elementwise' else ', block by block'}."
                )
    return chosen


def grouped(members: Iterable[tuple[torch.nn.Parameter, dict[str, float]]]) -> list[dict[str, Any]]:
    """Parameter groups, one for each set of numbers, in the order of their numbers from high to low."""
    groups: dict[tuple[tuple[str, float], ...], list[torch.nn.Parameter]] = {}
    for tensor, numbers in members:
        groups.setdefault(tuple(sorted(numbers.items(), reverse=True)), []).append(tensor)
    return [
        {"params": tensors, **dict(key), "peak_lr": dict(key)["lr"]}
        for key, tensors in sorted(groups.items(), reverse=True, key=lambda item: item[0])
    ]


def set_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's rate to ``factor`` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
