"""Curvature and loss surfaces of any differentiable loss: plain PyTorch, no Lightning.

Everything here takes a loss, the tensors it depends on and fixed batches::

    loss(batch) -> mean loss, or (mean loss, number of terms)

and means by "the loss" the mean over the terms of all batches. A loss that does not say how many
terms its batch has gives every batch the same weight.
"""

from . import directions
from .hessian import Hessian, hessian
from .spectrum import Spectrum, spectrum
from .surface import Line, Plane, line, plane

__all__ = [
    "Hessian",
    "Line",
    "Plane",
    "Spectrum",
    "directions",
    "hessian",
    "line",
    "plane",
    "spectrum",
]
