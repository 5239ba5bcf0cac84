"""Studies: a declared set of variants, run with the same seeds and data order, and a verdict with its noise."""
