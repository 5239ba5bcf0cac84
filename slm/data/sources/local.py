"""Files of your own."""

from __future__ import annotations

from typing import Literal

from slm.data.sources.base import source
from slm.data.sources.files import SEARCHED, FileSource, Layout


@source.register("local")
class Local(FileSource):
    """Files of your own: .parquet, .jsonl, .ndjson, .json (lines or an array), .txt, .md; all but parquet also .gz, .zst.

    A line of JSON lines is a document, and so is a row of parquet, an item of a JSON array and a whole text file.
    In directories, .json and hidden files are passed over.
    """

    text_field: str = "text"
    """The field that holds the text (dots go into nested records)."""
    text_files: Literal["whole", "lines"] = "whole"
    """Whether a .txt or .md file is one document, or a document a line."""

    def layout(self) -> Layout:
        return Layout(("**/*",), SEARCHED)

    def _text_in_lines(self) -> bool:
        return self.text_files == "lines"
