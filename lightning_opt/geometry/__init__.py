"""Curvature and loss surfaces of any differentiable loss: plain PyTorch, no Lightning.

Everything here takes a loss, the tensors it depends on and fixed batches::

    loss(batch) -> mean loss, or (mean loss, number of terms),
                   or (mean loss, number of terms, {name: mean of a metric over the same terms})

and means by "the loss" the mean over the terms of all batches. A loss that does not say how many
terms its batch has gives every batch the same weight.
"""

from . import directions
from .batchnorm import running_statistics
from .eigenvectors import eigenvectors
from .gauss_newton import empirical_fisher, gauss_newton
from .hessian import hessian
from .operator import CurvatureOperator
from .spectrum import Spectrum, spectrum
from .surface import Line, Plane, line, plane

__all__ = [
    "CurvatureOperator",
    "Line",
    "Plane",
    "Spectrum",
    "directions",
    "eigenvectors",
    "empirical_fisher",
    "gauss_newton",
    "hessian",
    "line",
    "plane",
    "running_statistics",
    "spectrum",
]
