"""SentencePiece models at work (Kudo and Richardson 2018, arXiv 1808.06226)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np

from slm.config.errors import ConfigError
from slm.data.tokenizer import metaspace, proto
from slm.data.tokenizer.base import Tokenizer, encode_pieces
from slm.data.tokenizer.eot import find_eot


class SentencePiece(Tokenizer):
    """A unigram or BPE ``.model``.

    User-defined symbols are text by sentencepiece's own rules: they are kept whole where a document has them.
    Control symbols are never made from text.
    """

    kind: ClassVar[str] = "sentencepiece"
    file_name: ClassVar[str] = "tokenizer.model"

    def __init__(self, raw: bytes, eot: str | None = None) -> None:
        import sentencepiece

        model = proto.ModelFile(raw)
        ids = {piece: i for i, (piece, _) in enumerate(model.pieces)}
        controls = [piece for piece, kind in model.pieces if kind == proto.CONTROL]
        if eot is None and model.eos_piece in controls:
            eot = model.eos_piece
        self.eot = find_eot(controls, ids, eot)
        if self.eot != model.eos_piece or self.eot not in controls:
            model = model.with_eos(self.eot)
        self.model, self.raw = model, model.raw
        self.vocab_size, self.eot_id = len(model.pieces), ids[self.eot]
        silent = (proto.CONTROL, proto.UNKNOWN, proto.UNUSED)
        self.special_ids = frozenset(i for i, (_, kind) in enumerate(model.pieces) if kind in silent)
        if model.model_type not in ("unigram", "bpe") or model.space_as_suffix or not model.escapes_spaces:
            raise ConfigError(
                f"This sentencepiece model (type {model.model_type}, spaces as suffix: {model.space_as_suffix}, "
                f"spaces escaped: {model.escapes_spaces}) is of a kind that slm doesn't read: it reads unigram and bpe "
                "models that write a space as ▁ before a word."
            )
        missing = metaspace.missing_bytes(ids)
        self.prefix = b" " if model.dummy_prefix else b""
        self.loss = _loss(model, missing)
        self._mark = None if missing else [ids[f"<0x{b:02X}>"] for b in metaspace.MARK.encode()]
        # slm puts the prefix itself: only a document has one, not what follows a real ▁ in it.
        self.inner = sentencepiece.SentencePieceProcessor(model_proto=model.without_prefix().raw)

    @classmethod
    def recognises(cls, raw: bytes) -> bool:
        # The first field of the first piece; no text file begins with it, and a .json has a brace.
        if not raw.startswith(b"\n") or raw.lstrip()[:1] == b"{":
            return False
        try:
            return bool(proto.ModelFile(raw).pieces)
        except ValueError:
            return False

    def _encode(self, texts: Sequence[str], threads: int | None) -> list[list[int]]:
        def run(texts: Sequence[str]) -> list[list[int]]:
            return self.inner.encode(list(texts), num_threads=threads or -1)  # type: ignore[no-any-return]

        prefix = self.prefix.decode()
        texts = [prefix + text if text else "" for text in texts]
        return run(texts) if self._mark is None else encode_pieces(texts, metaspace.split, self._mark, run)

    @cached_property
    def bytes_of(self) -> list[bytes]:
        return [
            b"" if i in self.special_ids else metaspace.bytes_of(piece, fallback=kind == proto.BYTE)
            for i, (piece, kind) in enumerate(self.model.pieces)
        ]

    @cached_property
    def fallback(self) -> np.ndarray:
        return np.array([kind == proto.BYTE for _, kind in self.model.pieces])


def _loss(model: proto.ModelFile, missing: list[int]) -> str:
    losses = []
    if model.normalization:
        losses.append(f"normalises text ({model.normalization})")
    if model.removes_spaces:
        losses.append("drops repeated spaces")
    if not model.byte_fallback or missing:
        losses.append("has no tokens for some characters")
    return " and ".join(losses)
