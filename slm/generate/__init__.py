"""Decoding: a key/value cache at work, one token at a time."""

from slm.generate.decode import Sampling, generate, pick_prompts

__all__ = ["Sampling", "generate", "pick_prompts"]
