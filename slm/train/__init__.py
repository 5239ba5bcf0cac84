"""The trainer. `loop.py` reads from top to bottom; everything else is what it calls."""
