"""Write a Hugging Face model directory, and prove it.

The directory is written aside, loaded by transformers, compared logit by logit with the model it came from,
and only then put in its place (`slm.export.place`). fp32 weights are written as they are: the proof is about
what is on the disk.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from slm.checkpoint import Restored
from slm.config.errors import ConfigError, RunError
from slm.data.tokenizer import Tokenizer
from slm.export.card import model_card
from slm.export.families.tensors import to_theirs
from slm.export.place import put, refuse_to_replace
from slm.export.targets import Target, choose, why_not
from slm.export.verify import Comparison, compare
from slm.model.decoder import Decoder

TOLERANCE = 1e-5
"""Largest |logit difference| in fp32, relative to max(1, standard deviation of the logits)."""
NO_TOKENIZER = b"{}"
"""Stands for the tokenizer in a checkpoint that was imported without one."""


@dataclass(frozen=True)
class Export:
    """What was written, and how equal it is."""

    target: str
    architecture: str
    path: str
    rewrites: list[str]
    verified: bool
    max_abs_diff: float
    kl: float
    top1_agreement: float

    def to_json(self) -> dict[str, Any]:
        """Fields of the JSON contract."""
        fields = asdict(self)
        return {"target": fields.pop("target"), "class": fields.pop("architecture"), **fields}


def export_hf(restored: Restored, out: Path) -> Export:
    """Export a checkpoint to ``out`` and verify it in transformers.

    Raises:
        ConfigError: no Hugging Face class computes this model (says which part is in the way), ``out`` holds
            something else than an earlier export, or transformers isn't installed.
        RunError: the written model doesn't give the same logits, or the disk is full; what stood at ``out``
            stays as it was.
    """
    model = restored.model
    target, reasons = choose(model.config)
    if target is None:
        raise ConfigError(
            f"No Hugging Face class computes this model exactly, so it isn't exported. {why_not(reasons)}."
        )
    refuse_to_replace(out)
    try:
        with put(out) as partial:
            write(model, target, restored, partial)
            comparison = compare(model, partial)
            _refuse_unequal(comparison, target, out)
            (partial / "README.md").write_text(model_card(restored, target.architecture, comparison))
    except OSError as error:
        raise RunError(f"Can't write the export to {out}: {error.strerror or error}.") from None
    except SafetensorError as error:  # how safetensors reports a full disk
        raise RunError(f"Can't write the export to {out}: {error}.") from None
    return _export(target, out, comparison)


def _refuse_unequal(c: Comparison, target: Target, out: Path) -> None:
    allowed = TOLERANCE * max(1.0, c.logit_std)
    if c.max_abs_diff > allowed:
        raise RunError(
            f"The export as {target.architecture} gives other logits (max |difference| {c.max_abs_diff:.2e}, allowed "
            f"{allowed:.1e} at a standard deviation of {c.logit_std:.2f}); nothing was written to {out}. This is a bug "
            f"in slm: please report the config."
        )


def _export(target: Target, out: Path, c: Comparison) -> Export:
    return Export("hf", target.architecture, str(out), [], True, c.max_abs_diff, c.kl, c.top1_agreement)


def write(model: Decoder, target: Target, restored: Restored, out: Path) -> None:
    """Weights, config and tokenizer in the layout that transformers, vLLM and mlx-lm read."""
    out.mkdir(parents=True, exist_ok=True)
    ours = {name: p.detach() for name, p in model.named_parameters()}
    tensors = to_theirs(target.family, model.config, ours)
    safetensors.torch.save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    mark = None if restored.tokenizer == NO_TOKENIZER else _end_of_text(restored.tokenizer)
    eot, eot_id = mark or (None, None)
    special = {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": None}
    config = {
        "architectures": [target.architecture],
        "model_type": target.family.model_type,
        "torch_dtype": "float32",
        "dtype": "float32",
        **target.config,
        "use_cache": True,
        **special,
    }
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({} if eot is None else {"bos_token": eot, "eos_token": eot}),
        "model_max_length": model.config.context,
        "clean_up_tokenization_spaces": False,
    }
    for name, content in {
        "config.json": config,
        "generation_config.json": {k: v for k, v in special.items() if v is not None},
        "tokenizer_config.json": tokenizer,
    }.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    if restored.tokenizer != NO_TOKENIZER:
        (out / "tokenizer.json").write_bytes(restored.tokenizer)


def _end_of_text(raw: bytes) -> tuple[str, int] | None:
    """Name and id of the token between documents; None for an imported model whose tokenizer has none.

    Raises:
        ConfigError: a sentencepiece model, which transformers would convert in its own way.
    """
    try:
        tokenizer = Tokenizer.from_bytes(raw)
    except ConfigError:
        return None
    if tokenizer.file_name != "tokenizer.json":
        raise ConfigError(
            "The tokenizer is a sentencepiece model, and an export to Hugging Face takes a tokenizer.json: other tools convert "
            "sentencepiece files each in their own way, and the ids would not be proven equal. Train with tokenizer=bpe to export."
        )
    return tokenizer.eot, tokenizer.eot_id
