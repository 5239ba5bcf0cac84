"""Costs: parameters, FLOPs, bytes, device peaks. Numbers only: nothing here imports torch."""
