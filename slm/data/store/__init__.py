"""The token store: documents as ids on disk, with checksums, written once.

::

    store/
      manifest.json        what is here and where every input document went, written last: a directory without
                           it is no store; it holds its own checksum
      tokenizer.json       (or tokenizer.model)
      shards/00000.tok     little-endian token ids (u16, or u32 for vocabularies above 65,536), no header
      shards/00000.idx     u64 exclusive end of every document, in tokens
      shards/00000.crc     u32 CRC-32 of every 64 KiB block of .tok, then of every 64 KiB block of .idx
      shards/00000.meta    parquet: document ids, their lengths in UTF-8 bytes, the source's columns

A store holds two splits, ``train`` and ``heldout``; each is a list of shards. Documents carry no special
tokens: what stands between them is the plan's business. Every block is checked when it is first touched.
"""

from slm.data.store.manifest import FORMAT, SPLITS
from slm.data.store.shard import Shard
from slm.data.store.store import Split, Store, StoredDocument, token_dtype

__all__ = ["FORMAT", "SPLITS", "Shard", "Split", "Store", "StoredDocument", "token_dtype"]
