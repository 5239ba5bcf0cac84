"""What every source of documents is: units of work in a fixed order, and a reader for one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from slm.config.errors import RunError
from slm.config.registry import Part, Registry
from slm.data.document import Broken, Document, Unit

RULES = {
    "bad_json": "a line that is not a JSON object, or that says two things (a key twice, NaN)",
    "no_text": "a record without the text field",
    "null_text": "a record whose text is null",
    "not_text": "a record whose text field holds something else",
    "invalid_utf8": "bytes that are no UTF-8, or half a surrogate pair",
    "no_id": "a record without the id field that was asked for",
    "too_long": "a record longer than max_document_bytes",
    "truncated_file": "the rest of a file that ends too early or is damaged: counted once a file",
    "damaged_rows": "rows of a parquet row group that can't be decoded: counted once a row",
}
"""Under which rule a record that can't be read is counted, and what that means."""


class SourcePart(Part):
    """A source of documents. Parts travel to worker processes, so they hold settings and no open files."""

    positional: ClassVar[str] = ""
    """The field that VALUE sets in ``name:VALUE`` on the command line."""

    def units(self) -> list[Unit]:
        """The pieces of the source, in order. How it is cut depends on its contents, never on who reads it."""
        return [Unit(self.part_name, f"{self.part_name}:", 0)]

    def read(self, unit: Unit) -> Iterator[Document | Broken]:
        """Every record of a unit, as exactly one `Document` or `Broken`, in bounded memory."""
        raise NotImplementedError

    def documents(self) -> Iterator[Document]:
        """All documents of all units, in order. Raises `RunError` at a broken record unless those are skipped."""
        for unit in self.units():
            for record in self.read(unit):
                if isinstance(record, Broken):
                    self.refuse(record)
                else:
                    yield record

    def refuse(self, broken: Broken) -> None:
        """Raise `RunError` for a record that can't be read, unless this source's broken records are skipped."""
        if not self._skips():
            raise RunError(
                f"{broken.where}: {broken.why}.{self._whereabouts()} Mend the file; or pass on_error=skip "
                f"(--skip-broken) to leave out and count what can't be read."
            )

    def published_tokens(self) -> float | None:
        """About how many tokens its maker says it has, by a tokenizer of the maker's; None if that isn't known. For plans of runs whose
        text isn't there yet."""
        return None

    def state(self) -> Any:
        """What identifies the contents without reading them all: goes into the token store's name."""
        raise NotImplementedError

    def _skips(self) -> bool:
        return False

    def _whereabouts(self) -> str:
        """A sentence that says where the names in messages are to be found."""
        return ""


source = Registry("source", SourcePart)
SourceSlot = Annotated[SourcePart, source.field()]
