"""Which documents are worth training on: filters on columns, exact repeats, contamination, quality.

`filters` decides by what a source knows of a document, `quality` adds a column to decide by, `decontaminate`
finds documents that hold pieces of an evaluation set, and `dedup` finds documents that were there before. Each
answers for one document (or one list of hashes) at a time, so the work can be cut in any way without changing the result.
"""
