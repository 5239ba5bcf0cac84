"""Ready-made tokens of other frameworks as documents, in place where that is possible.

`base` says what a foreign file is to slm (`TokenFile`), `marks` takes end- and begin-of-document ids out of documents and
checks them, and each format has a file: `datatrove`, `olmo` (also headerless ids of others), `megatron`, `llmc`, and `columns`
(lists of ids in jsonl and parquet, the only one that copies). `detect` tells which format a path is.
"""

from slm.data.importers import columns as columns  # each registers its part
from slm.data.importers import datatrove as datatrove
from slm.data.importers import llmc as llmc
from slm.data.importers import megatron as megatron
from slm.data.importers import olmo as olmo
from slm.data.importers.base import (
    ImporterPart,
    ImporterSlot,
    TokenFile,
    TokenFileImporter,
    TokenListImporter,
    importer,
)
from slm.data.importers.detect import detect

__all__ = ["ImporterPart", "ImporterSlot", "TokenFile", "TokenFileImporter", "TokenListImporter", "detect", "importer"]
