"""The largest eigenvalues during training, beside the edge of stability (arXiv:2103.00065)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .style import ACCENT, Arrays, sequence, styled

LOGARITHMIC = 30.0  # from this ratio of the largest to the smallest on, the axis is logarithmic


def sharpness(arrays: Arrays, *, title: str | None = None) -> Figure:
    """Draws the largest eigenvalues over the steps, with the line 2/η.

    Above that line a step of plain gradient descent overshoots along the eigenvector.

    Args:
        arrays: ``steps`` (k,); ``eigenvalues`` (k, top), the largest at each of them, descending;
            ``learning_rates`` (k,), NaN where there is none; ``trace`` (k,), optional, drawn below.
            What is not finite is left out.
        title: above the plot.

    Raises:
        ValueError: the shapes do not fit each other.

    >>> steps = np.array([10, 20, 30])
    >>> arrays = {"steps": steps, "eigenvalues": 0.1 * steps[:, None]}
    >>> figure = sharpness({**arrays, "learning_rates": np.full(3, 0.5)})
    >>> [float(y) for y in figure.axes[0].lines[-1].get_ydata()]
    [4.0, 4.0, 4.0]
    """
    steps = np.asarray(arrays["steps"])
    series = {
        name: checked(name, arrays[name], steps)
        for name in ("eigenvalues", "learning_rates", "trace")
        if name in arrays
    }
    trace = series.get("trace")
    with styled():
        figure = Figure(figsize=(6.4, 3.8 if trace is None else 5.2), layout="constrained")
        axes = figure.subplots(
            1 if trace is None else 2,
            squeeze=False,
            sharex=True,
            height_ratios=None if trace is None else [2.2, 1],
        )[:, 0]
        values = series["eigenvalues"].reshape(len(steps), -1)
        draw_eigenvalues(axes[0], steps, values, series.get("learning_rates"))
        axes[0].set_title(title or "")
        if trace is not None:
            axes[1].plot(steps, finite(trace), color="#444444", marker="o", markersize=3)
            axes[1].set_ylabel("trace")
            axes[1].grid(axis="y")
        axes[-1].set_xlabel("step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def checked(name: str, values: NDArray[Any], steps: NDArray[Any]) -> NDArray[Any]:
    """The values as floats.

    Raises:
        ValueError: there is not one entry for each step.
    """
    values = np.asarray(values, dtype=float)
    if values.shape[:1] != steps.shape:
        raise ValueError(
            f"There has to be an entry for each step: got {name} of shape {values.shape} "
            f"for steps of shape {steps.shape}."
        )
    return values


def finite(values: NDArray[Any]) -> NDArray[Any]:
    """The values, with NaN, which is not drawn, in place of infinity."""
    return np.where(np.isfinite(values), values, np.nan)


def draw_eigenvalues(
    ax: Axes, steps: NDArray[Any], eigenvalues: NDArray[Any], rates: NDArray[Any] | None
) -> None:
    """A curve for each of the largest eigenvalues, and the edge of stability."""
    eigenvalues = finite(eigenvalues)
    colors = sequence(eigenvalues.shape[1])
    for rank, (values, color) in enumerate(zip(eigenvalues.T, colors, strict=True), start=1):
        label = f"λ{str(rank).translate(SUBSCRIPTS)}"
        ax.plot(steps, values, color=color, marker="o", markersize=3, linewidth=1.3, label=label)
    drawn = [eigenvalues.ravel()]
    if rates is not None and np.isfinite(rates).any():
        with np.errstate(divide="ignore"):
            edge = finite(2 / rates)
        ax.plot(
            steps,
            edge,
            color=ACCENT,
            linestyle="--",
            marker=".",
            markersize=3,
            label="2/η, edge of\nstability",
            gid="edge",
        )
        drawn.append(edge)
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    if not np.isfinite(eigenvalues).any():
        ax.text(0.5, 0.5, "no finite eigenvalue", ha="center", transform=ax.transAxes)
    elif values.min() > 0 and values.max() > LOGARITHMIC * values.min():
        ax.set_yscale("log")
    ax.set_ylabel("largest eigenvalues λ")
    ax.grid(axis="y")


SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
