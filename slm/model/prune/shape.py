"""The smaller model's config. What can't be cut is refused here, before anything is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from slm.config.errors import ConfigError
from slm.model.config import Model
from slm.model.parts import refuse


@dataclass(frozen=True)
class Shape:
    """What to cut to; None leaves it as it is. A head keeps its width."""

    layers: int | None = None
    dim: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    hidden: int | None = None


def smaller(model: Model, shape: Shape) -> Model:
    """The config of ``model`` cut to ``shape``.

    Raises:
        ConfigError: it would be larger; layers aren't all alike; a part can't be cut, or would compute with other factors.
    """
    _check_sizes(model, shape)
    _check_uniform(model)
    dim, layers = shape.dim or model.dim, shape.layers or model.layers
    attention, ffn = model.attention, model.ffn
    if shape.heads is not None or shape.kv_heads is not None:
        if model.position.per_head:
            raise refuse(model.position, "it treats heads differently by their number, so none can be taken out.")
        attention = attention.narrowed(shape.heads or getattr(attention, "heads", None) or 0, shape.kv_heads)
        _check_groups(model, attention)
    if shape.hidden is not None:
        ffn = ffn.narrowed(shape.hidden)
    cut = model.with_(
        dim=dim,
        layers=layers,
        attention=attention,
        ffn=ffn,
        embedding=model.embedding.at_width(model.dim, dim),
        residual=model.residual.at_depth(model.layers, layers),
    )
    _check_factors(model, cut)
    return cut


def is_narrower(model: Model, cut: Model) -> bool:
    """Whether anything but the number of layers differs."""
    return (cut.dim, cut.attention, cut.ffn) != (model.dim, model.attention, model.ffn)


def _check_sizes(model: Model, shape: Shape) -> None:
    has = {
        "layers": model.layers,
        "dim": model.dim,
        "heads": getattr(model.attention, "heads", None),
        "kv_heads": getattr(model.attention, "groups", None),
        "hidden": model.ffn.hidden,
    }
    for what, wanted in asdict(shape).items():
        if wanted is not None and (wanted < 1 or (has[what] is not None and wanted > has[what])):  # type: ignore[operator]
            raise ConfigError(f"Can't prune {what} from {has[what]} to {wanted}: pruning makes models smaller.")


def _check_uniform(model: Model) -> None:
    for place in model.contexts:
        own = (model.attention, model.ffn, model.position)
        if (place.attention, place.ffn, place.position) != own or place.shares_ffn or place.block != place.layer:
            raise refuse(
                model.layout,
                f"layer {place.layer} isn't like the others, or shares its weights: which layers may go, and what a cut does to the "
                f"others, is known only where all layers are alike and have their own weights (uniform).",
            )


def _check_groups(model: Model, attention: object) -> None:
    """Query heads stay with their key/value head, so a group can only lose heads."""
    before, after = (
        (getattr(a, "heads", 0) or 0) // max(1, getattr(a, "groups", 1)) for a in (model.attention, attention)
    )
    if after > before:
        raise refuse(
            model.attention,
            f"{before} query heads share a key/value head here, and {after} would have to: heads can leave a group, but not join one. "
            f"Keep more key/value heads.",
        )


def _check_factors(model: Model, cut: Model) -> None:
    scheme = model.parametrization
    for factor in (scheme.embedding_factor, scheme.logit_factor, scheme.branch_factor):
        if factor(model) != factor(cut):
            raise refuse(
                scheme,
                f"its {factor.__name__.removesuffix('_factor')} factor depends on the shape, so the cut model would multiply by "
                f"{factor(cut):g} where its weights were trained with {factor(model):g}. Train parents with the standard one.",
            )
