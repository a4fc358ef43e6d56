"""The loss along a line from one set of weights to another (thesis eq. 37)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .levels import crowded
from .style import ACCENT, Arrays, looks, styled

HEADROOM = 3.0  # how far beyond the losses between the ends the axis reaches, of their range


def line(arrays: Arrays, *, clip: float | None = None, title: str | None = None) -> Figure:
    """Draws the loss, and metrics on a second axis, along a line.

    Where a value is NaN or infinite the curve is interrupted, and a cross at the top marks the
    coefficient.

    Args:
        arrays: ``coefficients`` (k,), 0 at the start and 1 at the end; ``values`` (k,), the loss at
            each; ``metric_{name}`` (k,), optional.
        clip: the highest loss that is drawn. By default walls beyond the two ends do not flatten
            what lies between them.
        title: above the plot.

    Raises:
        ValueError: the shapes do not fit each other.

    >>> c = np.linspace(-0.5, 1.5, 5)
    >>> figure = line({"coefficients": c, "values": (1 - c) ** 2, "metric_accuracy": c})
    >>> [ax.get_ylabel() for ax in figure.axes]
    ['loss', 'accuracy']
    """
    coefficients = np.asarray(arrays["coefficients"], dtype=float)
    curves = curves_of(arrays, coefficients)
    styles = looks(curves)
    with styled():
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        ax = figure.subplots()
        draw_values(ax, coefficients, curves.pop("loss"), styles["loss"].color, "-", "loss")
        limit(ax, coefficients, np.asarray(arrays["values"], dtype=float), clip)
        mark_gaps(ax, coefficients[~np.isfinite(arrays["values"])])
        mark_ends(ax, coefficients)
        ax.set(xlabel="position on the line", ylabel="loss")
        ax.set_title(title or "", pad=20)
        ax.grid(axis="y")
        if curves:
            other = ax.twinx()
            other.spines["right"].set_visible(True)
            other.set_ylabel(", ".join(curves))
            for name, values in curves.items():
                draw_values(other, coefficients, values, styles[name].color, "--", name)
            figure.legend(loc="outside lower center", ncols=4)
    return figure


def curves_of(arrays: Arrays, coefficients: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The loss and the metrics by name.

    Raises:
        ValueError: one of them does not have the coefficients' shape.
    """
    metrics = {key[7:]: arrays[key] for key in arrays if key.startswith("metric_")}
    curves = {"loss": np.asarray(arrays["values"], dtype=float), **metrics}
    for name, values in curves.items():
        if values.shape != coefficients.shape or values.ndim != 1 or not values.size:
            raise ValueError(
                f"A line has one value for each coefficient: got {name} of shape {values.shape} "
                f"for coefficients of shape {coefficients.shape}."
            )
    return curves


def draw_values(
    ax: Axes, x: NDArray[Any], values: NDArray[Any], color: str, linestyle: str, label: str
) -> None:
    """Draws a curve that is interrupted where values are not finite; lone points are dots."""
    values = np.where(np.isfinite(values), values, np.nan)
    ax.plot(x, values, color=color, linestyle=linestyle, label=label)
    gaps = np.isnan(np.concatenate([[np.nan], values, [np.nan]]))
    lone = gaps[:-2] & gaps[2:] & ~gaps[1:-1]
    ax.plot(x[lone], values[lone], color=color, marker="o", markersize=4, linestyle="none")


def limit(ax: Axes, x: NDArray[Any], values: NDArray[Any], clip: float | None) -> None:
    """Limits and scale of the loss: logarithmic where most of it would lie at the bottom."""
    finite = np.isfinite(values)
    if not finite.any():
        ax.set_yticks([])
        ax.text(0.5, 0.5, "no finite loss", ha="center", transform=ax.transAxes)
        return
    low, high = float(values[finite].min()), float(values[finite].max())
    between = values[finite & (x >= 0) & (x <= 1)]
    if clip is None and between.size and between.max() > low:
        clip = low + HEADROOM * (float(between.max()) - low)
    top = high if clip is None or not clip > low else min(high, clip)
    if low > 0 and crowded(values[finite & (values <= top)], low, top):
        ax.set_yscale("log")
        ax.set_ylim(low * (low / top) ** 0.04, top * (top / low) ** 0.08)
    elif top > low:
        ax.set_ylim(low - 0.04 * (top - low), top + 0.08 * (top - low))


def mark_gaps(ax: Axes, places: NDArray[Any]) -> None:
    """A cross at the top wherever the loss is not finite."""
    if places.size:
        ax.plot(
            places,
            np.full(places.size, 0.97),
            transform=ax.get_xaxis_transform(),
            linestyle="none",
            marker="x",
            markersize=5,
            color=ACCENT,
            gid="not finite",
        )
        left = places[0] < np.mean(ax.get_xlim())
        ax.annotate(
            "not finite",
            (float(places[0]), 0.97),
            xycoords=ax.get_xaxis_transform(),
            xytext=(4 if left else -4, -7),
            textcoords="offset points",
            color=ACCENT,
            fontsize=8,
            va="top",
            ha="left" if left else "right",
        )


def mark_ends(ax: Axes, coefficients: NDArray[Any]) -> None:
    """Lines at 0, the start, and at 1, the end, where these are on the axis."""
    low, high = coefficients.min(), coefficients.max()
    for place, name in ((0.0, "start"), (1.0, "end")):
        if low <= place <= high:
            ax.axvline(place, color="#777777", linewidth=0.9, linestyle=":", zorder=0.5, gid=name)
            ax.text(place, 1.01, name, ha="center", va="bottom", transform=ax.get_xaxis_transform())
    if high > low:
        ax.set_xlim(low, high)
