"""Bounds that several rooms keep. Imports nothing, so that the command line can name them in its help."""

LARGEST_SEED = (1 << 63) - 1
"""Random number generators take 64 bits; torch's, numpy's and ours agree on the non-negative numbers up to here."""
