"""Data: sources -> tokenizer -> store -> plan -> loader. Tokenise once, then everything is arithmetic.

`sources` yields documents, `tokenizer` turns them into ids, `store` keeps the ids with checksums, `plan`
says which tokens stand in row *n* (a pure function), and `loader` makes tensors of them. Only the loader
imports torch.
"""
