"""Which documents pass: not empty, all filters met, no evaluation text in them. Each refusal has a name."""

from __future__ import annotations

from slm.data.curate.decontaminate import Index
from slm.data.curate.filters import Filter
from slm.data.document import Document
from slm.data.ingest.config import Curation


class Screen:
    """The checks of a `Curation`, ready to run. ``index``: of the evaluation sets, if it was built before."""

    def __init__(self, curation: Curation, index: Index | None = None) -> None:
        self.filters = [Filter.parse(text) for text in curation.filters]
        self.index = index or (curation.decontaminate.build() if curation.decontaminate else None)
        self.scorer = curation.quality.load() if curation.quality else None
        self._checked = not self.filters

    def enriched(self, doc: Document) -> Document:
        """The document with the columns that are computed here."""
        return doc if self.scorer is None else self.scorer.annotate(doc)

    def reason(self, doc: Document) -> str | None:
        """The rule under which a document is dropped, or None if it is kept."""
        if not self._checked:
            self._check(doc)
        if not doc.text:
            return "empty"
        for check in self.filters:
            if (rule := check.reason(doc)) is not None:
                return rule
        if self.index is not None and (name := self.index.contaminated(doc)) is not None:
            return f"contaminated: {name}"
        return None

    def _check(self, doc: Document) -> None:
        """Raise `ConfigError` if a filter asks for a column that the first document doesn't have: else it would drop all."""
        for check in self.filters:
            check.check(doc.meta)
        self._checked = True
