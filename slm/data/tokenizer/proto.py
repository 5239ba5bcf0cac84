"""The few fields of a sentencepiece ``.model`` that slm reads and sets.

A ``.model`` is a protocol buffer. sentencepiece comes with the generated reader, but that one works with the
newest protobuf only, which other packages hold back; the wire format itself is two dozen lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # of ModelProto
_PIECE, _TYPE = 1, 3  # of ModelProto.SentencePiece
_MODEL_TYPE, _SUFFIX, _BYTE_FALLBACK, _UNK, _EOS = 3, 24, 35, 45, 47  # of TrainerSpec
_NAME, _CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE = 1, 2, 3, 4, 5  # of NormalizerSpec

Value = int | bytes


@dataclass(frozen=True)
class ModelFile:
    """A ``.model``. Raises `ValueError` when what is read turns out to be something else."""

    raw: bytes

    @cached_property
    def pieces(self) -> list[tuple[str, int]]:
        """(text, type) of every piece, by id."""
        found = []
        for field, value in _fields(self.raw):
            if field == _PIECES:
                piece = dict(_fields(_message(value)))
                found.append((_message(piece.get(_PIECE, b"")).decode("utf-8"), int(piece.get(_TYPE, NORMAL))))
        return found

    @cached_property
    def _trainer(self) -> dict[int, Value]:
        return self._merged(_TRAINER)

    @cached_property
    def _normalizer(self) -> dict[int, Value]:
        return self._merged(_NORMALIZER)

    def _merged(self, message: int) -> dict[int, Value]:
        """A sub-message; one that is written several times is merged, the last value of a field counts."""
        found: dict[int, Value] = {}
        for field, value in _fields(self.raw):
            if field == message:
                found |= dict(_fields(_message(value)))
        return found

    @property
    def model_type(self) -> str:
        return MODEL_TYPES.get(int(self._trainer.get(_MODEL_TYPE, 1)), "unknown")

    @property
    def byte_fallback(self) -> bool:
        return bool(self._trainer.get(_BYTE_FALLBACK, 0))

    @property
    def space_as_suffix(self) -> bool:
        return bool(self._trainer.get(_SUFFIX, 0))

    @property
    def eos_piece(self) -> str:
        return _message(self._trainer.get(_EOS, b"</s>")).decode("utf-8")

    @property
    def normalization(self) -> str:
        """The rule's name, empty where nothing is normalised."""
        name = _message(self._normalizer.get(_NAME, b"")).decode("utf-8")
        return (name or "unnamed") if self._normalizer.get(_CHARSMAP, b"") else ""

    @property
    def dummy_prefix(self) -> bool:
        return bool(self._normalizer.get(_DUMMY_PREFIX, 1))

    @property
    def removes_spaces(self) -> bool:
        return bool(self._normalizer.get(_REMOVE_SPACES, 1))

    @property
    def escapes_spaces(self) -> bool:
        return bool(self._normalizer.get(_ESCAPE, 1))

    def without_prefix(self) -> "ModelFile":
        """The same model, but one that puts no space before a text."""
        return self._amended({}, normalizer=_field(_DUMMY_PREFIX, 0))

    def with_eos(self, piece: str) -> "ModelFile":
        """The same model with ``piece``, which it has, as its end of text: a control piece that no text encodes to."""
        index = [p for p, _ in self.pieces].index(piece)
        return self._amended({index: _field(_TYPE, CONTROL)}, trainer=_field(_EOS, piece.encode()))

    def with_hidden_controls(self) -> "ModelFile":
        """The same ids, but pieces that no text encodes to under names that nothing can be merged into."""
        names = {
            i: f"\ue000{i}\ue001".encode() for i, (_, kind) in enumerate(self.pieces) if kind in (CONTROL, UNKNOWN)
        }
        unknown = next((names[i] for i, (_, kind) in enumerate(self.pieces) if kind == UNKNOWN), b"")
        return self._amended({i: _field(_PIECE, n) for i, n in names.items()}, trainer=_field(_UNK, unknown))

    def _amended(self, pieces: dict[int, bytes], trainer: bytes = b"", normalizer: bytes = b"") -> "ModelFile":
        """The model with fields added to pieces and to its two specs; the last value of a field counts."""
        out, at = bytearray(), 0
        specs = {_TRAINER: b"", _NORMALIZER: b""}
        for field, value in _fields(self.raw):
            if field == _PIECES:
                out += _field(field, _message(value) + pieces.get(at, b""))
                at += 1
            elif field in specs:
                specs[field] += _message(value)
            else:
                out += _field(field, value)
        # Once each: not every reader merges a message that is written twice.
        out += _field(_TRAINER, specs[_TRAINER] + trainer) + _field(_NORMALIZER, specs[_NORMALIZER] + normalizer)
        return ModelFile(bytes(out))


def _message(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("not a sentencepiece model: a number stands where a message should")
    return value


def _fields(raw: bytes) -> Iterator[tuple[int, Value]]:
    """(number, value) of every field: an int for numbers, bytes for the rest; fixed 32 and 64 bits are bytes, too."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        wire = key & 7
        if wire == 0:
            number, at = _varint(raw, at)
            yield key >> 3, number
            continue
        if wire == 2:
            size, at = _varint(raw, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"not a sentencepiece model: wire type {wire}")
        if at + size > len(raw):
            raise ValueError("the sentencepiece model is cut off")
        yield key >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(raw):
            raise ValueError("the sentencepiece model is cut off")
        value |= (raw[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if raw[at - 1] < 0x80:
            return value, at


def _field(number: int, value: Value) -> bytes:
    """A field's bytes: of a number, or of a message or text."""
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    return _number(number << 3 | 2) + _number(len(value)) + value


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
