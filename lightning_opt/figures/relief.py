"""The loss over a plane as a relief, for paper."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .heights import Heights, bilinear
from .levels import Clip, levels
from .plane import plane, trajectory
from .style import ACCENT, DARK, HALO, Arrays, loss_colormap, styled

FINE = 161  # points along either side of the relief: its cut at the clip looks smooth


def relief(
    arrays: Arrays, *, of: str = "loss", clip: Clip = None, title: str | None = None
) -> Figure:
    """Draws the loss, or a metric, in three dimensions, and its contours on the floor.

    The relief is cut off at the clip, and where values are not finite. Between the points of the
    grid it is interpolated.

    Args:
        arrays: of :func:`~lightning_opt.figures.surface`.
        of: ``"loss"`` or the name of a metric.
        clip: the highest value that is drawn, or the lowest and the highest.
        title: above the plot.

    Raises:
        ValueError: see :func:`~lightning_opt.figures.surface`.

    >>> axis = np.linspace(-1, 1, 5)
    >>> bowl = {"alphas": axis, "betas": axis, "values": axis[:, None] ** 2 + axis**2}
    >>> relief(bowl).axes[0].get_zlabel()
    'loss'
    """
    alphas, betas, values = plane(arrays, of)
    scale = levels([arrays], of=of, clip=clip)
    heights = Heights(scale)
    a, b = np.meshgrid(
        np.linspace(alphas[0], alphas[-1], FINE), np.linspace(betas[0], betas[-1], FINE)
    )
    z = cut(bilinear(alphas, betas, heights.of(values.filled(np.nan)), a, b), heights)
    bands = {
        "cmap": loss_colormap(),
        "norm": BoundaryNorm(heights.of(scale), 256),
        "rasterized": True,
    }
    with styled():
        figure = Figure(figsize=(5.8, 5.0))
        figure.suptitle(title or "")
        ax = figure.add_subplot(projection="3d", computed_zorder=False)
        ax.set_position((0.0, 0.02, 0.94, 0.94))
        ax.set(xlim=(alphas[0], alphas[-1]), ylim=(betas[0], betas[-1]))
        ax.set(zlim=(heights.floor, heights.top), xlabel="α", ylabel="β", zlabel=of)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.set_zticks(*heights.ticks())
        if np.isfinite(z).any():
            flat = {"zdir": "z", "offset": heights.floor, "levels": heights.of(scale)}
            ax.contourf(a, b, z, **bands, **flat)
            ax.plot_surface(a, b, z, **bands, rcount=FINE, ccount=FINE, antialiased=False)
        else:
            ax.text2D(0.5, 0.5, f"no finite {of}", ha="center", transform=ax.transAxes)
        mark = {"marker": "+", "markersize": 9, "markeredgewidth": 1.8, "gid": "minimum"}
        ax.plot([0], [0], [heights.floor], color=ACCENT, zorder=1, **mark)
        if (path := trajectory(arrays)) is not None:
            look = {"color": DARK, "linewidth": 1.2, "path_effects": [HALO], "gid": "trajectory"}
            ax.plot(*path.T, heights.floor, **look, zorder=1)
        ax.view_init(elev=28, azim=-58)
    return figure


def cut(z: NDArray[Any], heights: Heights) -> NDArray[Any]:
    """Heights without what lies beyond the levels; the cut's edge lies at the levels themselves."""
    inside = np.pad((z >= heights.bottom) & (z <= heights.top), 1)
    rows, columns = z.shape
    near = np.any(
        [inside[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=0
    )
    return np.where(near, np.clip(z, heights.bottom, heights.top), np.nan)
