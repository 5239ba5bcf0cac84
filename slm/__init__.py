"""slm: a training framework for small language models."""

__version__ = "0.1.0"
