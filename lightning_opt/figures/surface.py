"""Contours of a loss over a plane of parameters (thesis eq. 38, figures 9 to 18)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure, FigureBase
from numpy.typing import NDArray

from .heights import Heights
from .levels import Clip, levels
from .plane import plane, trajectory
from .style import ACCENT, DARK, HALO, INK, Arrays, loss_colormap, numbers, styled

LABELED = 5  # contour lines that carry their level, at most
LABEL_ROOM = 20  # pixels of the layout, about the width of a label


def surface(
    arrays: Arrays, *, of: str = "loss", clip: Clip = None, title: str | None = None
) -> Figure:
    """Draws the loss, or a metric, around a minimum.

    Args:
        arrays: ``alphas`` (A,), ``betas`` (B,) and ``values`` (A, B), the loss ``values[i, j]`` at
            ``alphas[i]`` along the first direction (drawn to the right) and ``betas[j]`` along the
            second (drawn upward). NaN and infinity are drawn as missing. Optional are
            ``metric_{name}`` (A, B); ``trajectory`` (k, 2), the path of training in α and β, which
            is drawn on top; and ``evaluated`` (A, B), False where a value was interpolated.
        of: ``"loss"`` or the name of a metric.
        clip: the highest value that is drawn, or the lowest and the highest; the region beyond
            stays white. By default half of a loss's plane lies below, and all of a metric's.
        title: above the plot.

    Raises:
        ValueError: the shapes do not fit each other, there is no such metric, or the clip is no
            range.

    >>> axis = np.linspace(-1, 1, 5)
    >>> bowl = {"alphas": axis, "betas": axis, "values": axis[:, None] ** 2 + axis**2}
    >>> surface(bowl, title="A bowl").axes[0].get_title()
    'A bowl'
    """
    with styled():
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        ax = figure.subplots()
        contours = draw_surface(ax, arrays, levels([arrays], of=of, clip=clip), of=of)
        xlabel = "\n".join(["first direction α", *evaluated(arrays)])
        ax.set(xlabel=xlabel, ylabel="second direction β", title=title or "")
        if contours is not None:
            add_color_bar(figure, contours, of, ax=ax)
            figure.draw_without_rendering()  # only then is the size of the axes known
            label_levels(contours)
    return figure


class Contours(NamedTuple):
    """What :func:`draw_surface` has drawn: bands, and lines and a path if there are any."""

    filled: QuadContourSet
    lines: QuadContourSet | None
    heights: Heights
    path: NDArray[Any] | None


def draw_surface(
    ax: Axes, arrays: Arrays, levels: NDArray[Any], *, of: str = "loss"
) -> Contours | None:
    """Draws the contours on ``ax``; None where no value is finite.

    Args:
        ax: the axes; α runs to the right and β upward.
        arrays: see :func:`surface`.
        levels: increasing; the regions below the first and above the last one stay white.
        of: see :func:`surface`.
    """
    alphas, betas, values = plane(arrays, of)
    if values.mask.any():
        ax.patch.set(facecolor="#ececec", edgecolor="#c4c4c4", hatch="////")
    ax.set(xlim=(alphas[0], alphas[-1]), ylim=(betas[0], betas[-1]))
    ax.set_box_aspect(1)
    ax.locator_params(nbins=4)
    if values.mask.all():
        ax.text(0.5, 0.5, f"no finite {of}", ha="center", transform=ax.transAxes)
        return None
    heights = Heights(levels)
    edges = heights.of(levels)
    # contourf wants its rows along y: β.
    field = (alphas, betas, np.ma.masked_invalid(heights.of(values.filled(np.nan))).T)
    colors, norm = loss_colormap(), BoundaryNorm(edges, 256)
    filled = ax.contourf(
        *field, levels=edges, cmap=colors, norm=norm, extend=beyond(values, levels)
    )
    filled.set_edgecolor("face")  # otherwise hairlines shine through between the bands
    crossed = edges[(levels > values.min()) & (levels < values.max())]
    lines = None
    if crossed.size:
        inks = [ink(color) for color in colors(norm(crossed))]
        lines = ax.contour(*field, levels=crossed, colors=inks, linewidths=0.5, alpha=0.7)
    draw_lone_points(ax, *field, cmap=colors, norm=norm)
    path = trajectory(arrays)
    draw_trajectory(ax, path)
    mark_minimum(ax)
    return Contours(filled, lines, heights, path)


def draw_lone_points(
    ax: Axes, x: NDArray[Any], y: NDArray[Any], z: np.ma.MaskedArray[Any, Any], **colors: Any
) -> None:
    """Draws dots where contours cannot show a value, because none of its cells is complete."""
    known = np.pad(~np.ma.getmaskarray(z), 1)
    cells = known[1:, 1:] & known[1:, :-1] & known[:-1, 1:] & known[:-1, :-1]
    shown = cells[1:, 1:] | cells[1:, :-1] | cells[:-1, 1:] | cells[:-1, :-1]
    rows, columns = np.nonzero(known[1:-1, 1:-1] & ~shown)
    if rows.size:
        ax.scatter(x[columns], y[rows], c=z[rows, columns], s=12, gid="lone", **colors)


def beyond(values: NDArray[Any], levels: NDArray[Any]) -> str:
    """On which sides of the levels there are values, as matplotlib names it."""
    sides = {(False, False): "neither", (True, False): "min", (False, True): "max"}
    return sides.get((bool(values.min() < levels[0]), bool(values.max() > levels[-1])), "both")


def ink(color: Sequence[float]) -> str:
    """What is readable on a color: white on a dark one."""
    red, green, blue = color[:3]
    return "#ffffff" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else INK


def add_color_bar(figure: FigureBase, contours: Contours, of: str, **options: Any) -> None:
    """Adds a color bar that names the values and what is white."""
    texts = numbers(contours.heights.levels)
    white = {
        "neither": "",
        "min": f" (white: below {texts[0]})",
        "max": f" (white: above {texts[-1]})",
        "both": f" (white: outside {texts[0]} to {texts[-1]})",
    }
    label = of + white[str(contours.filled.extend)]
    bar = figure.colorbar(contours.filled, spacing="proportional", label=label, **options)
    every, last = 1 + (len(texts) - 1) // 8, len(texts) - 1
    shown = [*range(0, last - every + 1, every), last]  # the last one is the clip
    bar.set_ticks(
        list(contours.heights.of(contours.heights.levels)[shown]),
        labels=[texts[place] for place in shown],
    )
    bar.minorticks_off()


def evaluated(arrays: Arrays) -> list[str]:
    """How many of the points were evaluated, in words, if others were interpolated."""
    mask = np.asarray(arrays.get("evaluated", True))
    if mask.all():
        return []
    return [f"({mask.sum():,} of {mask.size:,} points evaluated, the others interpolated)"]


def label_levels(contours: Contours, *, count: int = LABELED) -> None:
    """Writes the levels onto some of the contour lines: where there is room, one label a level.

    Each label lies as far as can be from the other labels, the trained weights and the path, and
    not at the edge. The figure has to be laid out before.
    """
    if contours.lines is None:
        return
    lines, ax = contours.lines, contours.lines.axes
    taken = ax.transData.transform([[0.0, 0.0], *between(contours.path)])
    room = {
        level: points
        for level, segments in zip(lines.levels, lines.allsegs, strict=True)
        # The lowest may border on white, where the ink of its dark side could not be read.
        if level > contours.heights.bottom and len(points := with_room(ax, segments))
    }
    places = np.unique(np.linspace(0, len(room) - 1, min(count, len(room))).round().astype(int))
    chosen = [level for place, level in enumerate(room) if place in places]
    spots = []
    for level in chosen:
        distances = np.linalg.norm(room[level][:, None] - taken, axis=2).min(axis=1)
        spots.append(room[level][distances.argmax()])
        taken = np.vstack([taken, spots[-1]])
    if chosen:
        scale = contours.heights.levels
        texts = dict(zip(contours.heights.of(scale), numbers(scale), strict=True))
        manual = ax.transData.inverted().transform(spots)
        # Not told which levels: matplotlib 3.9 mixes them up when they are only some of all.
        labels = ax.clabel(lines, fmt=texts, fontsize=8, inline_spacing=3, manual=manual)
        for label in labels:
            label.set_alpha(1.0)


def with_room(ax: Axes, segments: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The points, in pixels, where a label fits: inside, on lines that a label does not hide."""
    low, high = ax.bbox.padded(-LABEL_ROOM).get_points()
    lines = [ax.transData.transform(segment) for segment in segments]
    lengths = [np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in lines]
    long = [line for line, length in zip(lines, lengths, strict=True) if length > 5 * LABEL_ROOM]
    points = np.concatenate([np.empty((0, 2)), *long])
    return points[np.all((points > low) & (points < high), axis=1)]


def between(path: NDArray[Any] | None) -> NDArray[Any]:
    """A path's points with others between them."""
    if path is None:
        return np.empty((0, 2))
    places, fine = np.arange(len(path)), np.linspace(0, len(path) - 1, 10 * len(path))
    return np.column_stack([np.interp(fine, places, column) for column in path.T])


def draw_trajectory(ax: Axes, path: NDArray[Any] | None) -> None:
    """Draws the path of training, with an open circle at its first point."""
    if path is None:
        return
    ax.plot(
        *path.T,
        color=DARK,
        linewidth=1.2,
        marker="o",
        markersize=2.5,
        path_effects=[HALO],
        gid="trajectory",
    )
    ax.plot(*path[:1].T, color=DARK, marker="o", markersize=6, markerfacecolor="white")


def mark_minimum(ax: Axes) -> None:
    """Marks (0, 0): the trained weights."""
    ax.plot(
        0,
        0,
        marker="+",
        markersize=9,
        markeredgewidth=1.8,
        color=ACCENT,
        gid="minimum",
        zorder=5,
        path_effects=[HALO],
    )
