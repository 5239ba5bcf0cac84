"""Cutting a trained model narrower and shallower: `smaller` (its config), `measure` (what matters), `cut` (its weights).

Importance is read off activations over some text, as in Minitron (Muralidharan et al. 2024, arXiv 2407.14679), and of layers as
in ShortGPT (Men et al. 2024, arXiv 2403.03853). The result is meant to be trained on, with its parent as teacher.
"""

from slm.model.prune.cut import cut
from slm.model.prune.importance import Importance, measure
from slm.model.prune.shape import Shape, smaller

__all__ = ["Importance", "Shape", "cut", "measure", "smaller"]
