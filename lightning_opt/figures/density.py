"""The eigenvalue density that a quadrature stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def density(
    nodes: NDArray[Any], weights: NDArray[Any], grid: NDArray[Any], width: float
) -> NDArray[np.float64]:
    r"""Smooths a quadrature into a density: :math:`\frac{1}{P}\sum_{p,k}\tau_{pk}\,
    \mathcal N(x;\theta_{pk},\sigma^2)`.

    Args:
        nodes: θ, of shape (probes, steps); entries that are NaN (of a probe that stopped early)
            count for nothing.
        weights: τ, of the same shape, each probe's with sum 1.
        grid: the points x, of shape (points,), in the units of the nodes.
        width: the standard deviation σ of the Gaussian, in the same units.

    Returns:
        The density at each grid point, of shape (points,), in 1/units of the nodes.

    Raises:
        ValueError: the width is not positive.

    >>> x = np.linspace(-1, 3, 2001)
    >>> y = density(np.array([[0.0, 2.0]]), np.array([[0.75, 0.25]]), x, width=0.1)
    >>> round(float(y.sum() * (x[1] - x[0])), 6), round(float(y[500] / y[1500]), 6)
    (1.0, 3.0)
    """
    if not width > 0:
        raise ValueError(f"The width of the smoothing must be positive, not {width}.")
    nodes, weights = np.atleast_2d(nodes), np.atleast_2d(weights)
    valid = np.isfinite(nodes)
    centers, masses = nodes[valid].astype(float), weights[valid].astype(float) / len(nodes)
    distances = (np.asarray(grid, dtype=float)[:, None] - centers) / width
    kernel = np.exp(-0.5 * distances**2) / (width * np.sqrt(2 * np.pi))
    smooth: NDArray[np.float64] = kernel @ masses
    return smooth
