"""Quality: the probability that a fastText model gives to a label, as a column for filters.

This is how DCLM picks its pages (Li et al. 2024, arXiv 2406.11794): a classifier of word bigrams, trained on OpenHermes and
r/ExplainLikeImFive against RefinedWeb, and the filter ``quality >= 0.018112``, which keeps about a tenth. As there,
a text is one line to the model: line breaks become blanks.

The model is a file that the user names (fastText's .bin or .ftz: Joulin et al. 2017, arXiv 1607.01759). Reading it takes the
module ``fasttext``, which several packages provide; fasttext-predict is the smallest, fasttext-numpy2 can train, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic

from slm.config.base import Config
from slm.config.errors import ConfigError, RunError, suggest
from slm.data.curate import fasttext_file
from slm.data.curate.expression import BUILTINS
from slm.data.document import Document

PREFIX = "__label__"


class Quality(Config):
    """Score documents by a fastText model."""

    model: str
    """Path of the model file (.bin, .ftz)."""
    label: str
    """The label whose probability is the score, with or without ``__label__`` (DCLM: ``hq``)."""
    column: str = pydantic.Field("quality", pattern=r"^[^\W\d]\w*$")
    """Name of the new column, for filters: ``quality >= 0.018112``."""

    @pydantic.field_validator("column")
    @classmethod
    def _is_free(cls, column: str) -> str:
        if column in BUILTINS:
            raise ConfigError(f"quality.column: {column!r} is a column that every document has. Choose another name.")
        return column

    def load(self) -> "Scorer":
        """Read the model. Raises `ConfigError` for a missing package or file or an unknown label, `RunError` for a bad file."""
        path, label = self._file(), self.label.removeprefix(PREFIX)
        known = [name.removeprefix(PREFIX) for name in fasttext_file.labels(path)]
        if label not in known:
            raise ConfigError(f"quality.label: the model {path} has no label {label!r}. {suggest(label, known)}")
        return Scorer(_model(path), PREFIX + label, self.column)

    def sha256(self) -> str:
        """Hash of the model file: goes into the identity of what was made with it."""
        with self._file().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _file(self) -> Path:
        path = Path(self.model).expanduser()
        if not path.is_file():
            near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
            raise ConfigError(f"quality.model: {path} is no file. {near}".strip())
        return path


class Scorer:
    """A model at work. Not to be sent between processes: each makes its own with `Quality.load`."""

    def __init__(self, model: Any, label: str, column: str) -> None:
        self._model, self.label, self.column = model, label, column

    def score(self, text: str) -> float | None:
        """P(label | text), at most 1; None if the model knows nothing of the text (no word of it, nor of its pieces)."""
        line = " ".join(text.encode("utf-8", "replace").decode("utf-8").strip().splitlines())
        names, probabilities = self._model.predict(line, k=-1)
        if not len(names):
            return None
        # A label that isn't returned has an immeasurably small probability; fastText's own sums may exceed 1 by 1e-5.
        return min(1.0, dict(zip(names, map(float, probabilities), strict=True)).get(self.label, 0.0))

    def scores(self, texts: Sequence[str]) -> list[float | None]:
        """`score` of every text."""
        return [self.score(text) for text in texts]

    def annotate(self, document: Document) -> Document:
        """The document with its score in ``meta[column]``. Raises `ConfigError` if the source has such a column."""
        if self.column in document.meta:
            raise ConfigError(
                f"quality.column: the source has a column {self.column!r} already (document {document.id!r}). Choose another name."
            )
        return Document(document.id, document.text, {**document.meta, self.column: self.score(document.text)})


def _model(path: Path) -> Any:
    try:
        import fasttext
    except ImportError as error:
        raise ConfigError(
            f"Quality scores need the module fasttext ({error}). Install it: pip install 'slm[quality]', which takes "
            f"fasttext-predict; fasttext-numpy2 serves as well."
        ) from None
    try:
        return fasttext.load_model(str(path))
    except (ValueError, RuntimeError, MemoryError) as error:
        raise RunError(f"{path}: fastText can't read this ({error}). The file is damaged.") from None
