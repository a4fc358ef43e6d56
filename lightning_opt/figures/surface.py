"""Contours of a loss over a plane of parameters (thesis eq. 38)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .style import Arrays, loss_colormap, number, styled

COUNT = 15  # levels below the clip: few enough to count, enough to see the shape


def surface(arrays: Arrays, *, title: str | None = None, clip: float | None = None) -> Figure:
    """Draws the loss around a minimum.

    Args:
        arrays: ``alphas`` (A,), ``betas`` (B,) and ``values`` (A, B), the loss ``values[i, j]`` at
            ``alphas[i]`` along the first direction (drawn to the right) and ``betas[j]`` along the
            second (drawn upward). NaN and infinity are drawn as missing.
        title: above the plot.
        clip: the highest loss that is drawn; the region above it stays white. By default half of
            the plane lies below it.

    Raises:
        ValueError: the shapes do not fit each other.

    >>> axis = np.linspace(-1, 1, 5)
    >>> bowl = {"alphas": axis, "betas": axis, "values": axis[:, None] ** 2 + axis**2}
    >>> surface(bowl, title="A bowl").axes[0].get_title()
    'A bowl'
    """
    with styled():
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        ax = figure.subplots()
        scale = levels([arrays], clip=clip)
        filled = draw_surface(ax, arrays, scale)
        ax.set(xlabel="first direction α", ylabel="second direction β", title=title or "")
        if filled is not None:
            figure.colorbar(filled, ax=ax, label=f"loss (white: above {number(scale[-1])})")
    return figure


def levels(surfaces: Sequence[Arrays], *, clip: float | None = None) -> NDArray[np.float64]:
    """Contour levels at round numbers, which all the surfaces share.

    The last one is the clip: by default the median loss over the surfaces, or a little above
    the highest of their lowest losses, so that each of them shows something.

    >>> axis = np.linspace(-1, 1, 5)
    >>> bowl = {"alphas": axis, "betas": axis, "values": axis[:, None] ** 2 + axis**2}
    >>> levels([bowl], clip=1.0)[[0, 1, -1]].tolist()
    [0.0, 0.1, 1.0]
    """
    finite = [values[np.isfinite(values)] for values in (s["values"] for s in surfaces)]
    finite = [values for values in finite if values.size]
    if not finite:
        return np.array([0.0, 1.0])
    low = float(min(values.min() for values in finite))
    exact = clip
    if clip is None:
        bottoms = [float(values.min()) for values in finite]
        clip = max(float(np.median(np.concatenate(finite))), low + 1.2 * (max(bottoms) - low))
    if not clip > low:  # a flat surface, or one wholly above the clip
        clip, exact = low + (abs(low) or 1.0), None
    # A loss is at least zero: the scale starts there wherever that costs little of its range.
    start = 0.0 if 0 <= low < 0.5 * clip else low
    ticks = np.asarray(MaxNLocator(COUNT, steps=[1, 2, 2.5, 5, 10]).tick_values(start, clip))
    return ticks if exact is None else np.append(ticks[ticks < 0.999 * clip], clip)


def draw_surface(ax: Axes, arrays: Arrays, levels: NDArray[Any]) -> QuadContourSet | None:
    """Draws the contours on ``ax``; None where no value is finite.

    Args:
        ax: the axes; α runs to the right and β upward.
        arrays: see :func:`surface`.
        levels: increasing; the region above the last one stays white.
    """
    alphas, betas, values = plane(arrays)
    if values.mask.any():
        ax.patch.set(facecolor="#ececec", edgecolor="#c4c4c4", hatch="////")
    ax.set(xlim=(alphas[0], alphas[-1]), ylim=(betas[0], betas[-1]))
    ax.set_box_aspect(1)
    ax.locator_params(nbins=4)
    if values.mask.all():
        ax.text(0.5, 0.5, "no finite loss", ha="center", transform=ax.transAxes)
        return None
    # contourf wants its rows along y: β.
    filled = ax.contourf(alphas, betas, values.T, levels=levels, cmap=loss_colormap(), extend="max")
    filled.set_edgecolor("face")  # otherwise hairlines shine through between the bands
    crossed = levels[(levels > values.min()) & (levels < values.max())]
    if crossed.size:
        ax.contour(
            alphas, betas, values.T, levels=crossed, colors="#16324f", linewidths=0.5, alpha=0.6
        )
    mark_minimum(ax)
    return filled


def mark_minimum(ax: Axes) -> None:
    """Marks (0, 0): the trained weights."""
    ax.plot(
        0,
        0,
        marker="+",
        markersize=9,
        markeredgewidth=1.8,
        color="#D55E00",
        gid="minimum",
        zorder=5,
    )


def plane(arrays: Arrays) -> tuple[NDArray[Any], NDArray[Any], np.ma.MaskedArray[Any, Any]]:
    """The axes of a surface and its values, masked where they are not finite.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    alphas, betas, values = arrays["alphas"], arrays["betas"], np.asarray(arrays["values"])
    if values.shape != (len(alphas), len(betas)) or min(values.shape) < 2:
        raise ValueError(
            f"A surface has values of shape (alphas, betas), at least 2 × 2: "
            f"got {values.shape} for {len(alphas)} alphas and {len(betas)} betas."
        )
    bad = ~np.isfinite(values)
    return alphas, betas, np.ma.MaskedArray(values, mask=bad)
