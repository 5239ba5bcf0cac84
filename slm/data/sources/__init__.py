"""Where documents come from. A source yields `Document`s in a fixed order, whatever machine reads it.

`base` says what a source is; `files` reads everything that is files, with `listing` (which files), `streams`
(bytes and lines), `text` and `parquet` (records), `records` (fields) below it; `web` and `curated` are the
layouts of public corpora, `hub` any Hugging Face dataset, `choose` what is typed on a command line.
"""

from slm.data.document import Broken, Document, Unit
from slm.data.sources.base import RULES, SourcePart, SourceSlot, source
from slm.data.sources.builtin import Stdlib, Synthetic
from slm.data.sources.choose import source_of
from slm.data.sources.curated import Dolma, Finemath, Pile, SmollmCorpus, Starcoder
from slm.data.sources.files import SUFFIXES, FileSource, Layout, same
from slm.data.sources.hub import Hub
from slm.data.sources.local import Local
from slm.data.sources.web import Dclm, DclmParquet, Fineweb2, FinewebEdu, NemotronCC, Txt360

__all__ = [
    "RULES",
    "SUFFIXES",
    "Broken",
    "Dclm",
    "DclmParquet",
    "Document",
    "Dolma",
    "FileSource",
    "Finemath",
    "Fineweb2",
    "FinewebEdu",
    "Hub",
    "Layout",
    "Local",
    "NemotronCC",
    "Pile",
    "SmollmCorpus",
    "SourcePart",
    "SourceSlot",
    "Starcoder",
    "Stdlib",
    "Synthetic",
    "Txt360",
    "Unit",
    "same",
    "source",
    "source_of",
]
