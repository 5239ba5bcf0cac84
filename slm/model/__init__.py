"""The transformer: slots, the parts that fill them, and the decoder that puts them together.

Start with `decoder.py`; a block is in `residual.py`, and each slot has a file (``attention/`` a folder).
"""
