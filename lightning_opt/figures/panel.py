"""One method at all of its learning rates, in the manner of the thesis' figures 9 to 18."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from .curves import Curve, ceiling, draw_curve, dress
from .eigenvalue_axis import EigenvalueAxis, axis_for
from .levels import levels
from .outlines import draw_outlines, outline_level
from .spectrum import draw_spectrum, largest_eigenvalues
from .style import WIDTH, Arrays, say, sequence, styled
from .surface import Contours, add_color_bar, draw_surface, label_levels

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

    All contours share one loss scale, all outlines are drawn at one loss, and all densities share
    one axis of eigenvalues.

    >>> import numpy as np
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
        draw_overview(parts[0], columns, colors)
        axis = axis_for([column.spectrum for column in columns if column.spectrum is not None])
        drawn: list[Contours] = []
        for row, part in enumerate(parts[1:]):
            here = slice(row * across, (row + 1) * across)
            drawn += draw_columns(part, columns[here], colors[here], scale, axis, across)
        figure.draw_without_rendering()  # only then is the size of the axes known
        for contours in drawn:
            label_levels(contours, count=3)
    return figure


def draw_overview(part: SubFigure, columns: Sequence[Column], colors: Sequence[str]) -> None:
    """Left the loss curves, right the outlines of the region below one loss."""
    left, right = part.subplots(1, 2, width_ratios=[2.1, 1])
    curves = [column.curve for column in columns if column.curve is not None]
    top = ceiling(curves)
    for column, color in zip(columns, colors, strict=True):
        if column.curve is not None:
            draw_curve(left, column.curve, top, color=color, label=column.label)
        else:
            left.plot([], [], color=color, label=f"{column.label} ({column.note})")
    if curves:
        dress(left, top)
    else:
        say(left, "no loss curve")
    left.set_title("training loss")
    surfaces = {column.label: column.surface for column in columns if column.surface is not None}
    by_label = {column.label: color for column, color in zip(columns, colors, strict=True)}
    draw_outlines(right, surfaces, by_label, outline_level(list(surfaces.values())))
    part.legend(*left.get_legend_handles_labels(), loc="outside right upper")


def draw_columns(
    part: SubFigure,
    columns: Sequence[Column],
    colors: Sequence[str],
    levels: NDArray[Any],
    axis: EigenvalueAxis | None,
    across: int,
) -> list[Contours]:
    """Contours above, densities below, one column for each learning rate; returns the contours."""
    ratio = (WIDTH - 1.4) / across
    axes = part.subplots(2, across, height_ratios=[ratio, 1.7], squeeze=False)
    drawn: list[Contours] = []
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
            drawn += filter(None, [draw_surface(top, column.surface, levels)])
        if column.spectrum is None:
            say(bottom, column.note)
        else:
            draw_spectrum(bottom, column.spectrum, axis, color=color)
            bottom.set_xlabel("eigenvalue λ")
            if largest := largest_eigenvalues(column.spectrum, 3 if across < PER_ROW else 2):
                bottom.set_title(f"top λ: {', '.join(largest)}", fontsize=9)
    for ax, label in ((axes[0, 0], "β"), (axes[1, 0], "density")):
        ax.set_ylabel(label if ax.get_yticks().size else "")
    if drawn:
        # One that reaches above the clip says so for all.
        shown = max(drawn, key=lambda contours: contours.filled.extend != "neither")
        add_color_bar(part, shown, "loss", ax=list(axes[0]), aspect=30)
    return drawn
