"""The region of low loss of several surfaces in one plot (thesis figures 9 to 18, top right)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .levels import levels
from .plane import plane
from .style import Arrays, number, say, sequence, styled
from .surface import mark_minimum


def outlines(
    surfaces: Mapping[str, Arrays], *, level: float | None = None, title: str | None = None
) -> Figure:
    """Outlines for each surface, such as one for each learning rate, where its loss is low.

    Args:
        surfaces: by label, in the order of the legend, the arrays of
            :func:`~lightning_opt.figures.surface`.
        level: the loss of the outline; by default a round one that crosses as many of the surfaces
            as possible.
        title: above the plot.

    Raises:
        ValueError: the shapes of a surface do not fit each other.

    >>> axis = np.linspace(-1, 1, 21)
    >>> bowl = {"alphas": axis, "betas": axis, "values": axis[:, None] ** 2 + axis**2}
    >>> steep = {**bowl, "values": 9 * bowl["values"]}
    >>> figure = outlines({"lr 0.1": bowl, "lr 1": steep}, level=0.5)
    >>> figure.axes[0].get_title()
    'region where the loss is below 0.5'
    """
    colors = dict(zip(surfaces, sequence(len(surfaces)), strict=True))
    if level is None:
        level = outline_level(list(surfaces.values()))
    with styled():
        figure = Figure(figsize=(5.6, 4.4), layout="constrained")
        figure.suptitle(title or "")
        ax = figure.subplots()
        draw_outlines(ax, surfaces, colors, level)
        handles = [Line2D([], [], color=color, label=label) for label, color in colors.items()]
        figure.legend(handles=handles, loc="outside right upper")
    return figure


def draw_outlines(
    ax: Axes, surfaces: Mapping[str, Arrays], colors: Mapping[str, str], level: float | None
) -> None:
    """For each surface the border of the region whose loss is below ``level``.

    A surface that has no such border is named below the plot.
    """
    ax.set_box_aspect(1)
    if level is None:
        ax.set_title("region of low loss")
        say(ax, "no data")
        return
    without: dict[str, list[str]] = {}
    for label, arrays in surfaces.items():
        alphas, betas, values = plane(arrays)
        ax.update_datalim([(alphas[0], betas[0]), (alphas[-1], betas[-1])])
        if why := no_outline(values, level):
            without.setdefault(why, []).append(label)
        else:
            ax.contour(
                alphas, betas, values.T, levels=[level], colors=colors[label], linewidths=1.6
            )
    mark_minimum(ax)
    ax.margins(0)
    ax.locator_params(nbins=4)
    ax.set_title(f"region where the loss is below {number(level)}")
    notes = [f"{why}: {', '.join(labels)}" for why, labels in without.items()]
    ax.set(xlabel="\n".join(["α", *notes]), ylabel="β")


def no_outline(values: np.ma.MaskedArray[Any, Any], level: float) -> str | None:
    """Why a surface has no border at ``level``; None where it has one."""
    finite = values.compressed()
    if not finite.size:
        return "no finite loss"
    if finite.min() >= level:
        return "nowhere below"
    return "everywhere below" if finite.max() <= level else None


def outline_level(surfaces: Sequence[Arrays]) -> float | None:
    """A round loss, not above the clip, whose outline shows as many of the surfaces as possible.

    Among those it is the one below which the typical region is nearest to a quarter of the plane;
    1, 2 and 5 times powers of ten come before the levels of the contours. None where no level
    crosses any surface.

    >>> axis = np.linspace(-1, 1, 41)
    >>> bowl = {"alphas": axis, "betas": axis, "values": axis[:, None] ** 2 + axis**2}
    >>> outline_level([bowl])
    0.2
    """
    planes = [values for values in (plane(one)[2].compressed() for one in surfaces) if values.size]
    scale = levels(surfaces)
    roundest = round_numbers(float(scale[-1]))

    def merit(level: float) -> tuple[int, bool, float]:
        crossed = [values for values in planes if values.min() < level < values.max()]
        areas = [float(np.mean(values < level)) for values in crossed]
        distance = abs(float(np.median(areas)) - 0.25) if areas else 1.0
        return len(crossed), level in roundest, -distance

    best = max([*roundest, *map(float, scale)], key=merit)
    return best if merit(best)[0] else None


def round_numbers(high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten, over some decades up to ``high``.

    >>> round_numbers(1.0)[-4:]
    [0.1, 0.2, 0.5, 1.0]
    """
    if high <= 0:
        return []
    decades = np.arange(-6, 1) + int(np.floor(np.log10(high)))
    candidates = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    return [level for level in candidates if level <= high]
