"""Measurements beside peers: the same work on the same bytes in the same run, so that a number means something.

`data` lists what is measured, `results` says what a result is. Peers are optional packages: one that is missing is named
in the result and its number left out.
"""
