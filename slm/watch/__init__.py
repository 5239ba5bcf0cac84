"""Watching a run from its files alone: its state, and curves in a terminal. Torch is loaded only where a budget needs it."""
