"""The way out: a checkpoint as a directory of another format, proven equal on its target."""

from slm.export.hf import Export, export_hf

EXPORTERS = {"hf": export_hf}
"""Target name -> function (restored checkpoint, directory) -> `Export`."""

__all__ = ["EXPORTERS", "Export", "export_hf"]
