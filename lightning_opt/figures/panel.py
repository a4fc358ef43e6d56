"""One method at all of its learning rates, in the manner of the thesis' figures 9 to 18."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from .curves import Curve, ceiling, draw_curve, dress
from .spectrum import draw_spectrum, largest_eigenvalues
from .style import WIDTH, Arrays, number, sequence, styled
from .surface import draw_surface, levels, mark_minimum, plane

PER_ROW = 5  # more columns than these would be too narrow to read


@dataclass(frozen=True)
class Column:
    """What a panel shows for one learning rate.

    Attributes:
        label: above the column.
        curve: the training loss, if there is one.
        surface: the arrays of :func:`~lightning_opt.figures.surface`, if there are any.
        spectrum: the arrays of :func:`~lightning_opt.figures.spectrum`, if there are any.
        note: stands in for what is absent, such as "diverged".
    """

    label: str
    curve: Curve | None = None
    surface: Arrays | None = None
    spectrum: Arrays | None = None
    note: str = "no data"


def panel(columns: Sequence[Column], *, title: str | None = None) -> Figure:
    """Draws loss curves and the outlined region of low loss; below, contours and densities.

    All contours share one loss scale, and all outlines are drawn at one loss.

    >>> axis = np.linspace(-1, 1, 5)
    >>> bowl = {"alphas": axis, "betas": axis, "values": axis[:, None] ** 2 + axis**2}
    >>> figure = panel([Column("0.1", surface=bowl), Column("1", note="diverged")], title="SGD")
    >>> figure.get_suptitle()
    'SGD'
    """
    colors = sequence(len(columns))
    rows = -(-len(columns) // PER_ROW)
    across = max(3, -(-len(columns) // rows))
    heights = [3.1] + [(WIDTH - 1.4) / across + 2.7] * rows
    with styled():
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        figure.suptitle(title or "")
        parts = figure.subfigures(1 + rows, squeeze=False, height_ratios=heights)[:, 0]
        scale = levels([column.surface for column in columns if column.surface is not None])
        draw_overview(parts[0], columns, colors, clip=float(scale[-1]))
        for row, part in enumerate(parts[1:]):
            here = slice(row * across, (row + 1) * across)
            draw_columns(part, columns[here], colors[here], scale, across)
    return figure


def draw_overview(
    part: SubFigure, columns: Sequence[Column], colors: Sequence[str], clip: float
) -> None:
    """Left the loss curves, right the outlines of the region below one loss."""
    left, right = part.subplots(1, 2, width_ratios=[2.1, 1])
    top = ceiling([column.curve for column in columns if column.curve is not None])
    for column, color in zip(columns, colors, strict=True):
        if column.curve is not None:
            draw_curve(left, column.curve, top, color=color, label=column.label)
        else:
            left.plot([], [], color=color, label=f"{column.label} ({column.note})")
    dress(left, top)
    left.set_title("training loss")
    draw_outlines(right, columns, colors, clip)
    part.legend(*left.get_legend_handles_labels(), loc="outside right upper")


def draw_outlines(ax: Axes, columns: Sequence[Column], colors: Sequence[str], clip: float) -> None:
    """For each learning rate the border of the region whose loss is below one level."""
    ax.set_box_aspect(1)
    level = outline_level([c.surface for c in columns if c.surface is not None], clip)
    if level is None:
        ax.set_title("region of low loss")
        say(ax, "no data")
        return
    above = []
    for column, color in zip(columns, colors, strict=True):
        if column.surface is None:
            continue
        alphas, betas, values = plane(column.surface)
        if values.min() < level < values.max():
            ax.contour(alphas, betas, values.T, levels=[level], colors=color, linewidths=1.6)
        elif values.min() >= level:
            above.append(column.label)
    mark_minimum(ax)
    ax.locator_params(nbins=4)
    ax.set_title(f"region where the loss is below {number(level)}")
    ax.set(xlabel="α" if not above else f"α\nnowhere below: {', '.join(above)}", ylabel="β")


def outline_level(surfaces: Sequence[Arrays], clip: float) -> float | None:
    """A round loss up to ``clip`` whose outline shows as many of the surfaces as possible.

    Among those it is the one below which the typical region is nearest to a quarter of the plane.

    >>> axis = np.linspace(-1, 1, 41)
    >>> bowl = {"alphas": axis, "betas": axis, "values": axis[:, None] ** 2 + axis**2}
    >>> outline_level([bowl], clip=1.0)
    0.2
    """
    planes = [plane(surface)[2].compressed() for surface in surfaces]
    planes = [values for values in planes if values.size]
    if not planes or clip <= 0:
        return None
    decades = np.arange(-6, 1) + int(np.ceil(np.log10(clip)))
    candidates = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    candidates = [level for level in candidates if level <= clip]

    def merit(level: float) -> tuple[int, float]:
        crossed = [values for values in planes if values.min() < level < values.max()]
        areas = [float(np.mean(values < level)) for values in crossed]
        return len(crossed), -abs(float(np.median(areas)) - 0.25) if areas else -1.0

    best = max(candidates, key=merit)
    return best if merit(best)[0] else None


def draw_columns(
    part: SubFigure,
    columns: Sequence[Column],
    colors: Sequence[str],
    levels: NDArray[Any],
    across: int,
) -> None:
    """Contours above, densities below, one column for each learning rate."""
    ratio = (WIDTH - 1.4) / across
    axes = part.subplots(2, across, height_ratios=[ratio, 1.7], squeeze=False)
    drawn: QuadContourSet | None = None
    for place, (top, bottom) in enumerate(axes.T):
        if place >= len(columns):
            top.set_axis_off()
            bottom.set_axis_off()
            continue
        column, color = columns[place], colors[place]
        top.set_title(column.label, color=color, fontweight="bold")
        if column.surface is None:
            top.set_box_aspect(1)
            say(top, column.note)
        else:
            drawn = draw_surface(top, column.surface, levels) or drawn
        if column.spectrum is None:
            say(bottom, column.note)
        else:
            draw_spectrum(bottom, column.spectrum, color=color)
            bottom.set_xlabel("eigenvalue λ")
            if largest := largest_eigenvalues(column.spectrum, 3 if across < PER_ROW else 2):
                bottom.set_title(f"top λ: {', '.join(largest)}", fontsize=9)
    for ax, label in ((axes[0, 0], "β"), (axes[1, 0], "density")):
        ax.set_ylabel(label if ax.get_yticks().size else "")
    if drawn is not None:
        part.colorbar(
            drawn, ax=list(axes[0]), label=f"loss (white: above {number(levels[-1])})", aspect=30
        )


def say(ax: Axes, note: str) -> None:
    """Words in place of a plot."""
    ax.set(xticks=[], yticks=[])
    ax.set_facecolor("#f4f4f4")
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.text(0.5, 0.5, note, ha="center", va="center", color="#555555", transform=ax.transAxes)
