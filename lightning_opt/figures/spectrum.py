"""The eigenvalue density of a Hessian, from stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from .eigenvalue_axis import EigenvalueAxis, axis_for
from .style import ACCENT, PALETTE, Arrays, number, styled

DECADES = 8.0  # below the peak nothing is drawn
LARGEST, SMALLEST = 5, 3  # eigenvalues that are listed


def spectrum(arrays: Arrays, *, title: str | None = None) -> Figure:
    """Draws the density of the eigenvalues, marks the extreme ones and lists them.

    With several probes the density is their mean, in a band of one standard error. Where nearly all
    eigenvalues are close to zero, the axis is logarithmic beyond them (see
    :mod:`~lightning_opt.figures.eigenvalue_axis`).

    Args:
        arrays: ``nodes`` and ``weights`` of shape (probes, steps), NaN nodes counting for nothing.
            Optional are ``eigenvalues`` and ``residuals`` of the extreme eigenvalues: those
            that are known to one percent have a filled mark, and the others an open one and a ≈.
            Nodes are never listed: without re-orthogonalization, which ``reorthogonalized`` tells,
            they repeat eigenvalues. ``trace`` and ``trace_stderr`` are written beside the plot.
        title: above the plot.

    >>> arrays = {"nodes": np.array([[0.0, 10.0]]), "weights": np.array([[0.9, 0.1]])}
    >>> spectrum(arrays, title="Two nodes").axes[0].get_yscale()
    'log'
    """
    with styled():
        figure = Figure(figsize=(7.4, 3.8), layout="constrained")
        ax = figure.subplots()
        axis = axis_for([arrays])
        draw_spectrum(ax, arrays, axis)
        ax.text(
            1.03,
            0.98,
            "\n".join(facts(arrays, axis)),
            va="top",
            transform=ax.transAxes,
            gid="facts",
        )
        ax.set(xlabel="eigenvalue λ of the Hessian", ylabel="density", title=title or "")
    return figure


def draw_spectrum(
    ax: Axes, arrays: Arrays, axis: EigenvalueAxis | None, *, color: str = PALETTE[0]
) -> None:
    """Draws the density on ``ax``, with a mark at each extreme eigenvalue."""
    nodes, weights = np.atleast_2d(arrays["nodes"]), np.atleast_2d(arrays["weights"])
    if axis is None or not np.isfinite(nodes).any():
        ax.set(xticks=[], yticks=[])
        ax.text(0.5, 0.5, "no finite eigenvalue", ha="center", transform=ax.transAxes)
        return
    grid = axis.grid()
    each = np.array(
        [axis.density(n[None], w[None], grid) for n, w in zip(nodes, weights, strict=True)]
    )
    heights = each.mean(axis=0)
    floor = floor_of(heights, nodes, weights, axis)
    ax.set_yscale("log")
    ax.yaxis.set_minor_locator(NullLocator())  # there are too many decades for ticks between them
    ax.fill_between(
        grid, floor, np.maximum(heights, floor), color=color, alpha=0.15, linewidth=0, gid="fill"
    )
    if len(each) > 1:
        error = each.std(axis=0, ddof=1) / math.sqrt(len(each))
        low, high = (np.maximum(edge, floor) for edge in (heights - error, heights + error))
        ax.fill_between(grid, low, high, color=color, alpha=0.35, linewidth=0, gid="error")
    ax.plot(grid, np.where(heights > floor, heights, np.nan), color=color, linewidth=1.2)
    axis.dress(ax)
    ax.set_ylim(floor, 4 * float(heights.max()))
    ax.grid(axis="y")
    mark_eigenvalues(ax, arrays, ACCENT if color == PALETTE[0] else color)


def mark_eigenvalues(ax: Axes, arrays: Arrays, color: str) -> None:
    """A bar at each eigenvalue that is known, an open circle at each that is not quite."""
    values, residuals = extreme_eigenvalues(arrays)
    known = is_known(values, residuals)
    for gid, some, marker, size in (
        ("eigenvalues", known, "|", 11.0),
        ("approximate", ~known, "o", 4.0),
    ):
        ax.plot(
            values[some],
            np.full(some.sum(), 0.04),
            transform=ax.get_xaxis_transform(),
            linestyle="none",
            marker=marker,
            markersize=size,
            markeredgewidth=1.1,
            color=color,
            markerfacecolor="white",
            gid=gid,
            zorder=3,
        )


def floor_of(
    heights: NDArray[Any], nodes: NDArray[Any], weights: NDArray[Any], axis: EigenvalueAxis
) -> float:
    """Where the logarithmic axis starts: below the lightest node, within some decades."""
    peak = float(heights.max())
    valid = np.isfinite(nodes) & (weights > 0)
    bumps = weights[valid] * axis.slope(nodes[valid]) / len(weights)
    lightest = float(bumps.min()) / (axis.width * math.sqrt(2 * math.pi)) if valid.any() else peak
    return max(min(lightest, peak) / 30, peak * math.pow(10, -DECADES))


def facts(arrays: Arrays, axis: EigenvalueAxis | None) -> list[str]:
    """What is written beside the plot."""
    values, residuals = extreme_eigenvalues(arrays)
    words = [in_words(*pair) for pair in zip(values, residuals, strict=True)]
    lines = ["largest λ", *words[:LARGEST], ""] if words else []
    if smallest := words[LARGEST:][: -SMALLEST - 1 : -1]:
        lines += ["smallest λ", *smallest, ""]
    if not words and not arrays.get("reorthogonalized", np.array(True)):
        lines += ["no eigenvalues listed:", "not re-orthogonalized", ""]
    if "trace" in arrays:
        lines.append(f"trace {with_error(arrays['trace'], arrays.get('trace_stderr'))}")
    probes, steps = np.atleast_2d(arrays["nodes"]).shape
    lines.append(f"{counted(probes, 'probe')}, {counted(steps, 'step')}")
    if probes > 1:
        lines.append("band: ± 1 standard error")
    if axis is not None:
        lines += ["smoothed by a Gaussian,", f"σ = {axis.smoothing()}"]
    return lines


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "probe"), counted(4, "probe")
    ('1 probe', '4 probes')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def with_error(value: Any, error: Any) -> str:
    """A number with its standard error, where there is one.

    >>> with_error(74.19, 18.4), with_error(74.19, float("nan"))
    ('74.2 ± 18', '74.2')
    """
    if error is None or not np.isfinite(error):
        return number(float(value))
    return f"{number(float(value))} ± {number(float(error), 2)}"


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


def is_known(values: NDArray[Any], residuals: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the residual, a bound on the error, is within one percent."""
    known: NDArray[np.bool_] = residuals <= 0.01 * np.abs(values)
    return known


def in_words(value: float, residual: float) -> str:
    """An eigenvalue, marked as approximate where its residual exceeds one percent.

    >>> in_words(12.0, 1e-6), in_words(12.0, 1.0)
    ('12', '≈ 12')
    """
    known = is_known(np.array(value), np.array(residual))
    return number(value) if known else f"≈ {number(value)}"
