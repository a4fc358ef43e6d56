"""Every plot, from arrays: used by the callbacks and the report alike.

Nothing here imports torch or pyplot: a figure is an object, made and saved without a display and
without any global state.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from .curves import Curve, training_loss
from .density import density
from .files import save
from .panel import Column, panel
from .sensitivity import Sensitivity, sensitivity
from .spectrum import spectrum
from .style import Arrays, Look, looks
from .surface import surface

__all__ = [
    "Arrays",
    "Column",
    "Curve",
    "Figure",
    "Look",
    "Sensitivity",
    "density",
    "looks",
    "panel",
    "save",
    "sensitivity",
    "spectrum",
    "surface",
    "training_loss",
]
