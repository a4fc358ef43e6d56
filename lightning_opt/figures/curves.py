"""Training loss against steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .style import WIDTH, Look, styled


@dataclass(frozen=True)
class Curve:
    """The training loss of several seeds, in bins of steps.

    Attributes:
        steps: the middle of each bin, of shape (bins,).
        middle: the median over seeds, of the same shape.
        low: the lowest over seeds.
        high: the highest over seeds.
        diverged: a run ended here because its loss was no longer finite.
    """

    steps: NDArray[Any]
    middle: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]
    diverged: bool = False


def training_loss(curves: Mapping[str, Curve], looks: Mapping[str, Look]) -> Figure:
    """Draws one curve for each method: the median over seeds and the band that holds them all.

    Args:
        curves: by label, in the order of the legend.
        looks: by the same labels.

    >>> from .style import looks
    >>> steps = np.arange(1, 4)
    >>> curve = Curve(steps, 1 / steps, 0.9 / steps, 1.1 / steps)
    >>> training_loss({"adam": curve}, looks(["adam"])).axes[0].get_xlabel()
    'step'
    """
    with styled():
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        ax = figure.subplots()
        top = ceiling(curves.values())
        for label, curve in curves.items():
            look = looks[label]
            draw_curve(ax, curve, top, color=look.color, linestyle=look.linestyle, label=label)
        dress(ax, top)
        figure.legend(loc="outside right upper")
    return figure


def ceiling(curves: Collection[Curve]) -> float:
    """The highest loss that is drawn: some times where training started.

    Without it a run that diverged at 1e30 would flatten all the others.
    """
    starts = [values[0] for c in curves if (values := c.middle[np.isfinite(c.middle)]).size]
    return 20 * float(np.median(starts)) if starts else 1.0


def draw_curve(
    ax: Axes, curve: Curve, top: float, *, color: str, label: str, linestyle: str = "-"
) -> None:
    """Draws the median and the band; a cross where a run diverged, at ``top`` or below."""
    shown = np.isfinite(curve.middle) & (curve.middle > 0)
    steps, middle = curve.steps[shown], curve.middle[shown]
    ax.plot(steps, middle, color=color, linestyle=linestyle, label=label)
    ax.fill_between(
        steps, curve.low[shown], curve.high[shown], color=color, alpha=0.15, linewidth=0
    )
    if curve.diverged and steps.size:
        end = (steps[-1], min(middle[-1], 0.8 * top))
        ax.plot(*end, marker="x", color=color, markersize=8, markeredgewidth=2, gid="diverged")


def dress(ax: Axes, top: float) -> None:
    """Axes, scale and labels of a loss curve."""
    ax.set_yscale("log")
    ax.set(xlabel="step", ylabel="training loss")
    drawn = np.concatenate([[top], *(np.asarray(line.get_ydata(), float) for line in ax.lines)])
    drawn = drawn[(drawn > 0) & (drawn <= top)]
    ax.set_ylim(0.7 * drawn.min(), min(top, ax.get_ylim()[1]))
    ax.grid(axis="y")
    ax.margins(x=0.01)
