r"""An axis of eigenvalues on which the bulk stays visible beside outliers that lie far out.

Where nearly all eigenvalues lie close to zero, the axis is :math:`u = \operatorname{asinh}(λ/s)`,
linear up to :math:`s` and logarithmic beyond. The density is smoothed by a Gaussian of one width
:math:`σ_u` on the axis, and is still a density of λ:

.. math:: φ(λ) = \frac{\mathrm d u}{\mathrm d λ} \sum_k τ_k\, \mathcal N(u(λ); u(θ_k), σ_u^2),

so that an eigenvalue λ is smeared over :math:`σ_u \sqrt{λ^2 + s^2}`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from .density import density
from .style import Arrays, number

RELATIVE_WIDTH = 0.005  # the smoothing's, of the range of the nodes on the axis
BENT_WIDTH = 0.01  # the same where the axis bends: the bulk takes more of it, with as few nodes
MARGIN = 0.06  # beside the nodes, of their range
POINTS = 1500
BULK = 0.95  # of the eigenvalues lie in the linear part
DECADES = 3  # at most so many beyond the linear part


@dataclass(frozen=True)
class EigenvalueAxis:
    """An axis from ``low`` to ``high``, the extreme nodes.

    Attributes:
        bend: s, up to which the axis is linear; None: all of it is.
    """

    low: float
    high: float
    bend: float | None = None

    def forward(self, values: NDArray[Any]) -> NDArray[Any]:
        """λ to u."""
        return values if self.bend is None else np.arcsinh(values / self.bend)

    def inverse(self, places: NDArray[Any]) -> NDArray[Any]:
        """u to λ."""
        return places if self.bend is None else self.bend * np.sinh(places)

    def slope(self, values: NDArray[Any]) -> NDArray[Any]:
        """du/dλ."""
        return np.ones_like(values) if self.bend is None else 1 / np.hypot(values, self.bend)

    @property
    def extent(self) -> float:
        """The range of the nodes on the axis."""
        low, high = self.forward(np.array([self.low, self.high]))
        return float(high - low) or abs(float(high)) or 1.0

    @property
    def width(self) -> float:
        """σ_u, the standard deviation of the smoothing."""
        return (RELATIVE_WIDTH if self.bend is None else BENT_WIDTH) * self.extent

    def grid(self) -> NDArray[Any]:
        """The λ at which densities are drawn, evenly spaced on the axis.

        >>> EigenvalueAxis(0.0, 10.0).grid()[[0, -1]].tolist()
        [-0.6, 10.6]
        """
        low, high = self.forward(np.array([self.low, self.high]))
        margin = MARGIN * self.extent
        return self.inverse(np.linspace(low - margin, high + margin, POINTS))

    def density(
        self, nodes: NDArray[Any], weights: NDArray[Any], grid: NDArray[Any]
    ) -> NDArray[Any]:
        """The density of λ at the points of ``grid``, smoothed on the axis."""
        on_axis = density(self.forward(nodes), weights, self.forward(grid), self.width)
        per_value: NDArray[Any] = on_axis * self.slope(grid)
        return per_value

    def smoothing(self) -> str:
        """The width of the smoothing in words.

        >>> EigenvalueAxis(0.0, 10.0).smoothing(), EigenvalueAxis(-1.0, 100.0, 0.5).smoothing()
        ('0.05', '0.074 √(λ² + 0.5²)')
        """
        if self.bend is None:
            return number(self.width)
        return f"{self.width:.2g} √(λ² + {number(self.bend)}²)"

    def dress(self, ax: Axes) -> None:
        """Scale, limits and ticks of the x axis of ``ax``."""
        if self.bend is None:
            ax.locator_params(axis="x", nbins=6)
        else:
            ax.set_xscale("asinh", linear_width=self.bend)
            ticks = decades(self.low, self.high, self.bend)
            ax.set_xticks(ticks, [number(tick).replace("-", "−") for tick in ticks])
            ax.minorticks_off()
        ax.set_xlim(*self.grid()[[0, -1]])


def decades(low: float, high: float, bend: float) -> list[float]:
    """Zero, and the powers of ten beyond the linear part, on either side.

    >>> decades(-2.0, 30.0, 0.05)
    [-1.0, -0.1, 0.0, 0.1, 1.0, 10.0]
    """
    first = math.ceil(math.log10(bend))

    def side(end: float) -> list[float]:
        last = math.floor(math.log10(end)) if end > 0 else first - 1
        return [float(f"1e{power}") for power in range(first, last + 1)]

    return [*(-tick for tick in reversed(side(-low))), 0.0, *side(high)]


def axis_for(spectra: Sequence[Arrays]) -> EigenvalueAxis | None:
    """An axis for all of these spectra, given by their nodes and weights; None if none is finite.

    >>> nodes = np.array([[0.0, 0.01, 0.02, 5.0]])
    >>> axis_for([{"nodes": nodes, "weights": np.array([[0.4, 0.3, 0.29, 0.01]])}])
    EigenvalueAxis(low=0.0, high=5.0, bend=0.02)
    >>> axis_for([{"nodes": nodes, "weights": np.array([[0.4, 0.1, 0.1, 0.4]])}])
    EigenvalueAxis(low=0.0, high=5.0, bend=None)
    """
    found = [np.asarray(one["nodes"], dtype=float) for one in spectra]
    nodes = np.concatenate([some[np.isfinite(some)] for some in found]) if found else np.empty(0)
    if not nodes.size:
        return None
    low, high = float(nodes.min()), float(nodes.max())
    if high - low < 1e-9 * max(high, -low):  # one eigenvalue, but for rounding
        low = high
    bulks = [b for b in (bulk(one["nodes"], one["weights"]) for one in spectra) if b is not None]
    bend = max(float(np.median(bulks)), 10.0**-DECADES * max(high, -low))
    return EigenvalueAxis(low, high, bend if 0 < bend < 0.05 * (high - low) else None)


def bulk(nodes: NDArray[Any], weights: NDArray[Any]) -> float | None:
    """The |λ| below which most of the eigenvalues lie; None without any."""
    valid = np.isfinite(nodes) & (np.asarray(weights) > 0)
    if not valid.any():
        return None
    sizes, masses = np.abs(nodes[valid]), weights[valid]
    order = np.argsort(sizes)
    shares = np.cumsum(masses[order]) / masses.sum()
    return float(sizes[order][min(np.searchsorted(shares, BULK), len(shares) - 1)])
