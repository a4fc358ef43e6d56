"""Heights of a loss, by which it is drawn: linear or logarithmic, as its levels are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .levels import is_logarithmic
from .style import numbers

FLOOR = 0.45  # how far the floor lies below the lowest level, of the range of the levels


@dataclass(frozen=True)
class Heights:
    """The scale that belongs to contour levels.

    Attributes:
        levels: of :func:`~lightning_opt.figures.levels.levels`.

    >>> axis = Heights(np.array([0.0, 1.0, 2.0]))
    >>> axis.floor, axis.bottom, axis.top, axis.ticks()
    (-0.9, 0.0, 2.0, ([0.0, 1.0, 2.0], ['0', '1', '2']))
    """

    levels: NDArray[Any]

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """The heights of values; NaN where there is none."""
        values = np.where(np.isfinite(values), values, np.nan)
        if not is_logarithmic(self.levels):
            return values
        # What lies below the levels, perhaps below zero, is not drawn: any height there will do.
        heights: NDArray[Any] = np.log10(np.maximum(values, 1e-3 * self.levels[0]))
        return heights

    @property
    def bottom(self) -> float:
        """The height of the lowest level."""
        return float(self.of(self.levels[:1])[0])

    @property
    def top(self) -> float:
        """The height of the clip."""
        return float(self.of(self.levels[-1:])[0])

    @property
    def floor(self) -> float:
        """The height of the plane on which contours are projected."""
        return self.bottom - FLOOR * (self.top - self.bottom)

    def ticks(self) -> tuple[list[float], list[str]]:
        """Where to put ticks, and what to write there."""
        every = 1 + (len(self.levels) - 1) // 5
        shown = self.levels[::every]
        return self.of(shown).tolist(), numbers(shown)


def bilinear(
    alphas: NDArray[Any],
    betas: NDArray[Any],
    values: NDArray[Any],
    a: NDArray[Any],
    b: NDArray[Any],
) -> NDArray[Any]:
    """Values of a grid at the points (a, b), whose arrays have one shape; NaN spreads one cell.

    >>> axis = np.array([0.0, 1.0])
    >>> bilinear(axis, axis, np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([0.5]), np.array([0.25]))
    array([1.25])
    """
    i = np.clip(np.searchsorted(alphas, a, "right") - 1, 0, len(alphas) - 2)
    j = np.clip(np.searchsorted(betas, b, "right") - 1, 0, len(betas) - 2)
    s = (a - alphas[i]) / (alphas[i + 1] - alphas[i])
    t = (b - betas[j]) / (betas[j + 1] - betas[j])
    left = (1 - t) * values[i, j] + t * values[i, j + 1]
    right = (1 - t) * values[i + 1, j] + t * values[i + 1, j + 1]
    mixed: NDArray[Any] = (1 - s) * left + s * right
    return mixed
