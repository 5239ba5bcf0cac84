"""The way out: a checkpoint as a Hugging Face directory that is proven equal on its target."""

from slm.export.hf import Export, export_hf

__all__ = ["Export", "export_hf"]
