"""How a method's result depends on its learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .style import WIDTH, Look, styled


@dataclass(frozen=True)
class Sensitivity:
    """A method's result for each of its learning rates; all arrays have the shape (rates,).

    Attributes:
        rates: the learning rates, increasing and positive.
        mean: over the seeds that finished; NaN where none did.
        low: the lower end of the interval over seeds; NaN where there is none.
        high: the upper end.
        diverged: how many seeds diverged.
        runs: how many seeds finished or diverged.
    """

    rates: NDArray[Any]
    mean: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]
    diverged: NDArray[Any]
    runs: NDArray[Any]


def sensitivity(
    lines: Mapping[str, Sensitivity],
    looks: Mapping[str, Look],
    *,
    label: str,
    percent: bool = False,
) -> Figure:
    """Draws one line for each method, and below them a row of crosses for each that diverged.

    Args:
        lines: by name, in the order of the legend.
        looks: by the same names.
        label: of the result's axis.
        percent: the result is a share of 1, such as an accuracy: shown in percent, on an axis that
            spaces it by the logarithm of what is missing to 1, since 98 % to 99 % halves the errors
            as 80 % to 90 % does.

    >>> from .style import looks
    >>> one, none = np.ones(2), np.zeros(2, dtype=int)
    >>> line = Sensitivity(np.array([0.01, 0.1]), 0.9 * one, 0.8 * one, one, none, none + 3)
    >>> figure = sensitivity({"adam": line}, looks(["adam"]), label="validation accuracy")
    >>> figure.axes[0].get_xscale()
    'log'
    """
    rows = [name for name, line in lines.items() if line.diverged.any()]
    with styled():
        figure = Figure(figsize=(WIDTH, 4.4 + 0.24 * len(rows)), layout="constrained")
        axes = figure.subplots(
            2 if rows else 1,
            squeeze=False,
            sharex=True,
            height_ratios=[4.2, 0.24 * len(rows) + 0.1] if rows else None,
        )[:, 0]
        for place, (name, line) in enumerate(lines.items()):
            draw_line(axes[0], name, line, looks[name], nudge(place, len(lines)))
        axes[0].set_xscale("log")
        axes[0].set_ylabel(label)
        axes[0].grid()
        if percent:
            space_by_error(axes[0], lines)
        if rows:
            draw_divergences(axes[1], {name: lines[name] for name in rows}, looks)
        axes[-1].set_xlabel("learning rate")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


_SHARES = (0, 0.25, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
_LEAST_ERROR = 1e-4  # an accuracy of 1 is drawn here


def space_by_error(ax: Axes, lines: Mapping[str, Sensitivity]) -> None:
    """Spaces shares of 1 on the y axis by -log(1 - share), ticked in percent."""
    means = np.concatenate([line.mean for line in lines.values()])
    best = float(np.nanmax(means, initial=0.5))
    # An interval may reach beyond, also beyond 1, and is cut off; no mean is.
    top = 1 - max((1 - best) / 2, _LEAST_ERROR)
    ax.set_yscale(
        "function",
        functions=(lambda y: -np.log(np.maximum(1 - y, _LEAST_ERROR)), lambda z: 1 - np.exp(-z)),
    )
    lows = [line.low[np.isfinite(line.low)] for line in lines.values()]
    bottom = min(np.concatenate([means[np.isfinite(means)], *lows]), default=0.0)
    ax.set_ylim(max(min(bottom, best) - 0.1, -0.05), top)
    shown = [share for share in _SHARES if ax.get_ylim()[0] <= share <= top]
    ax.set_yticks(shown, [f"{100 * share:g} %" for share in shown])
    ax.minorticks_off()


def nudge(place: int, count: int) -> float:
    """A factor near 1 that keeps the intervals of several methods from covering each other."""
    return float(1.03 ** (place - (count - 1) / 2))


def draw_line(ax: Axes, name: str, line: Sensitivity, look: Look, factor: float) -> None:
    """The mean with its interval; an open marker where some seeds are missing from the mean."""
    rates = line.rates * factor
    ax.plot(rates, line.mean, color=look.color, linestyle=look.linestyle, linewidth=1.4)
    has = np.isfinite(line.low) & np.isfinite(line.high) & np.isfinite(line.mean)
    ax.vlines(rates[has], line.low[has], line.high[has], color=look.color, alpha=0.45, linewidth=2)
    for partial in (False, True):
        some = np.isfinite(line.mean) & ((line.diverged > 0) == partial)
        ax.plot(
            rates[some],
            line.mean[some],
            linestyle="none",
            marker=look.marker,
            markersize=5.5,
            color=look.color,
            markerfacecolor="white" if partial else look.color,
        )
    ax.plot([], [], color=look.color, linestyle=look.linestyle, marker=look.marker, label=name)


def draw_divergences(ax: Axes, lines: Mapping[str, Sensitivity], looks: Mapping[str, Look]) -> None:
    """A row for each method: a cross at each rate where seeds diverged, with how many of them."""
    for row, (name, line) in enumerate(lines.items()):
        for rate, diverged, runs in zip(line.rates, line.diverged, line.runs, strict=True):
            if diverged:
                color = looks[name].color
                ax.plot(
                    rate,
                    row,
                    marker="x",
                    color=color,
                    markersize=7,
                    markeredgewidth=2,
                    gid="diverged",
                )
                ax.annotate(
                    f"{diverged} of {runs}",
                    (rate, row),
                    xytext=(7, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
    ax.set_yticks(range(len(lines)), [f"{name} diverged" for name in lines])
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
