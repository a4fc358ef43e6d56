"""The eigenvalue density of a Hessian, from stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from .density import density
from .style import PALETTE, Arrays, number, styled

RELATIVE_WIDTH = 0.005  # the smoothing's, of the range of the nodes
DECADES = 8.0  # below the peak nothing is drawn


def spectrum(arrays: Arrays, *, title: str | None = None) -> Figure:
    """Draws the density of the eigenvalues and marks the extreme ones.

    Args:
        arrays: ``nodes`` and ``weights`` of shape (probes, steps), NaN nodes counting for nothing;
            ``eigenvalues`` and ``residuals`` (both optional) of the extreme eigenvalues, which
            are marked and of which the largest are listed. Nodes are never listed: without
            re-orthogonalization they repeat eigenvalues.
        title: above the plot.

    >>> arrays = {"nodes": np.array([[0.0, 10.0]]), "weights": np.array([[0.9, 0.1]])}
    >>> spectrum(arrays, title="Two nodes").axes[0].get_yscale()
    'log'
    """
    with styled():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        ax = figure.subplots()
        draw_spectrum(ax, arrays)
        if largest := largest_eigenvalues(arrays, 5):
            ax.text(
                0.98,
                0.96,
                "\n".join(["largest λ", *largest]),
                ha="right",
                va="top",
                transform=ax.transAxes,
                linespacing=1.3,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 2},
            )
        ax.set(xlabel="eigenvalue λ of the Hessian", ylabel="density", title=title or "")
    return figure


def draw_spectrum(ax: Axes, arrays: Arrays, *, color: str = PALETTE[0]) -> None:
    """Draws the density on ``ax``, with a tick at each extreme eigenvalue."""
    nodes, weights = np.atleast_2d(arrays["nodes"]), np.atleast_2d(arrays["weights"])
    finite = nodes[np.isfinite(nodes)]
    if not finite.size:
        ax.text(0.5, 0.5, "no finite eigenvalue", ha="center", transform=ax.transAxes)
        return
    grid, width = grid_for(finite)
    heights = density(nodes, weights, grid, width)
    floor = floor_of(heights, weights, width)
    ax.set_yscale("log")
    ax.yaxis.set_minor_locator(NullLocator())  # there are too many decades for ticks between them
    ax.fill_between(grid, floor, np.maximum(heights, floor), color=color, alpha=0.25, linewidth=0)
    ax.plot(grid, np.where(heights > floor, heights, np.nan), color=color, linewidth=1.2)
    ax.set(xlim=(grid[0], grid[-1]), ylim=(floor, float(heights.max()) * 4))
    ax.grid(axis="y")
    extremes, _ = extreme_eigenvalues(arrays)
    ax.plot(
        extremes,
        np.full(len(extremes), 0.035),
        transform=ax.get_xaxis_transform(),
        linestyle="none",
        marker="|",
        markersize=9,
        markeredgewidth=1.4,
        color="#D55E00" if color == PALETTE[0] else color,
        gid="eigenvalues",
    )


def grid_for(nodes: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """The points to draw at and the smoothing's width, both relative to the range of the nodes.

    >>> grid, width = grid_for(np.array([0.0, 10.0]))
    >>> width, float(grid[0]), float(grid[-1])
    (0.05, -0.6, 10.6)
    """
    low, high = float(nodes.min()), float(nodes.max())
    extent = (high - low) or abs(high) or 1.0
    margin = 0.06 * extent
    return np.linspace(low - margin, high + margin, 1500), RELATIVE_WIDTH * extent


def floor_of(heights: NDArray[Any], weights: NDArray[Any], width: float) -> float:
    """Where the logarithmic axis starts: below the lightest node, within some decades."""
    peak = float(heights.max())
    mean_weights = weights[weights > 0] / len(weights)
    lightest = float(mean_weights.min()) if mean_weights.size else 1.0
    bump = lightest / (width * math.sqrt(2 * math.pi))
    return max(min(bump, peak) / 100, peak * math.pow(10, -DECADES))


def extreme_eigenvalues(arrays: Arrays) -> tuple[NDArray[Any], NDArray[Any]]:
    """The eigenvalues that were computed, largest first, and their residuals."""
    values = np.ravel(arrays.get("eigenvalues", np.array([])))
    residuals = np.ravel(arrays.get("residuals", np.zeros(values.shape)))
    order = np.argsort(-values)[: np.isfinite(values).sum()]  # NaN sorts last
    return values[order], residuals[order]


def largest_eigenvalues(arrays: Arrays, count: int) -> list[str]:
    """The largest eigenvalues in words.

    >>> largest_eigenvalues({"eigenvalues": np.array([1.0, 30.0, -2.0])}, 2)
    ['30', '1']
    """
    pairs = zip(*extreme_eigenvalues(arrays), strict=True)
    return [in_words(float(value), float(residual)) for value, residual in pairs][:count]


def in_words(value: float, residual: float) -> str:
    """An eigenvalue, marked as approximate where its residual exceeds one percent.

    >>> in_words(12.0, 1e-6), in_words(12.0, 1.0)
    ('12', '≈ 12')
    """
    return number(value) if residual <= 0.01 * abs(value) else f"≈ {number(value)}"
