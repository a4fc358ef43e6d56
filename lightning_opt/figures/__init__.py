"""Every plot, from arrays: used by the callbacks and the report alike.

Nothing here imports torch or pyplot: a figure is an object, made and saved without a display and
without any global state. Only :func:`surface_3d`, when called, imports plotly.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from .curves import Curve, training_loss
from .density import density
from .files import save
from .line import line
from .outlines import outlines
from .panel import Column, panel
from .relief import relief
from .sensitivity import Sensitivity, sensitivity
from .sharpness import sharpness
from .spectrum import spectrum
from .style import Arrays, Look, looks
from .surface import surface
from .surface_3d import surface_3d

__all__ = [
    "Arrays",
    "Column",
    "Curve",
    "Figure",
    "Look",
    "Sensitivity",
    "density",
    "line",
    "looks",
    "outlines",
    "panel",
    "relief",
    "save",
    "sensitivity",
    "sharpness",
    "spectrum",
    "surface",
    "surface_3d",
    "training_loss",
]
