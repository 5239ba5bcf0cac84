"""Encoding by gigatoken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from slm.data.tokenizer import hf_file, metaspace, proto
from slm.data.tokenizer.base import Tokenizer
from slm.data.tokenizer.fast import MOST_ADDED, Fast, byte_level_reason
from slm.data.tokenizer.hf import HuggingFace
from slm.data.tokenizer.pretokenizers import PRETOKENIZERS, name_of
from slm.data.tokenizer.sp import SentencePiece


class Gigatoken(Fast):
    """For byte-level BPE with a pattern on its closed list, and for SentencePiece BPE with byte fallback.

    It gets the tokenizer without its special tokens, which it would find in documents, and without the space that
    some models put before a text, which slm puts itself.
    """

    package: ClassVar[str] = "gigatoken"

    def __init__(self, tokenizer: Tokenizer, threads: int = 1) -> None:
        import gigatoken

        super().__init__(tokenizer, threads)
        self._prefix = tokenizer.prefix.decode()
        if isinstance(tokenizer, SentencePiece):
            model = tokenizer.model.without_prefix().with_hidden_controls()
            self.inner = gigatoken.Tokenizer.from_sentencepiece(model.raw)
        else:
            assert isinstance(tokenizer, HuggingFace)
            self.inner = gigatoken.Tokenizer.from_json(json.dumps(_bare(tokenizer.spec)))
        self._spaces = isinstance(tokenizer, SentencePiece) or tokenizer.alphabet == "metaspace"

    @classmethod
    def why_not(cls, tokenizer: Tokenizer) -> str:
        if isinstance(tokenizer, SentencePiece):
            return _model_reason(tokenizer)
        if isinstance(tokenizer, HuggingFace) and tokenizer.alphabet == "metaspace":
            return _metaspace_reason(tokenizer)
        if reason := byte_level_reason(tokenizer):
            return reason
        assert isinstance(tokenizer, HuggingFace)
        name = tokenizer.pretokenizer
        return (
            "" if name and PRETOKENIZERS[name].gigatoken else "it cuts text by patterns that aren't on gigatoken's list"
        )

    def is_odd(self, text: str) -> bool:
        if self._spaces:  # no tables of Unicode are used, but a real ▁ would become a space
            return metaspace.MARK in text or (self._added is not None and self._added.search(text) is not None)
        return super().is_odd(text)

    def _fast(self, texts: Sequence[str]) -> list[np.ndarray]:
        import awkward

        raw = [(self._prefix + text).encode("utf-8") if text else b"" for text in texts]
        rows: Any = self.inner.encode_batch(raw, parallel=False)
        ids = np.asarray(awkward.flatten(rows, axis=1), dtype=np.uint32)
        ends = np.cumsum(np.asarray(awkward.num(rows, axis=1)))
        return np.split(ids, ends[:-1]) if len(texts) else []


def _bare(spec: hf_file.Spec) -> hf_file.Spec:
    """A file without added tokens and with its pattern as gigatoken spells it."""
    spec, _ = hf_file.working(spec)
    spec["added_tokens"] = []
    patterns = hf_file.split_patterns(spec)
    if patterns is not None:
        splits = [
            {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
            for p in PRETOKENIZERS[str(name_of(patterns))].patterns
        ]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*splits, byte_level]}
    return spec


def _model_reason(tokenizer: SentencePiece) -> str:
    if tokenizer.model.model_type != "bpe":
        return f"it is a {tokenizer.model.model_type} model, and gigatoken reads BPE"
    if tokenizer.loss:
        return f"it {tokenizer.loss}"
    if any(kind in (proto.USER_DEFINED, proto.UNUSED) for _, kind in tokenizer.model.pieces):
        return "it has user-defined or unused pieces"
    return ""


def _metaspace_reason(tokenizer: HuggingFace) -> str:
    if tokenizer.spec["model"].get("type", "BPE") != "BPE":
        return f"it is a {tokenizer.spec['model']['type']} model, and gigatoken reads BPE"
    if tokenizer.loss:
        return f"it {tokenizer.loss}"
    if tokenizer.producible:
        return f"text could become its special token {tokenizer.producible[0]!r}"
    if len(hf_file.plain_added(tokenizer.spec)) > MOST_ADDED:
        return f"it has more than {MOST_ADDED} added tokens that aren't special"
    return ""
