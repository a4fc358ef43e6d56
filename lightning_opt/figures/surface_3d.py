"""The loss over a plane in three dimensions, to turn and to point at in a browser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from .heights import Heights, bilinear
from .levels import Clip, levels
from .plane import plane, trajectory
from .style import ACCENT, DARK, INK, Arrays, loss_colormap, number, numbers

if TYPE_CHECKING:
    from plotly.basedatatypes import BaseTraceType
    from plotly.graph_objects import Figure as InteractiveFigure

RIM = 0.02  # of the range of the levels


def surface_3d(
    surfaces: Arrays | Mapping[str, Arrays],
    *,
    of: str = "loss",
    clip: Clip = None,
    title: str | None = None,
) -> InteractiveFigure:
    """Draws the loss, or a metric, in three dimensions, as a figure that is saved as ``.html``.

    Below the surface, which is cut off at the clip, are its contours. Several surfaces, such as one
    for each learning rate, share one scale, and a slider chooses among them.

    Args:
        surfaces: the arrays of :func:`~lightning_opt.figures.surface`, or several of them by label.
        of: ``"loss"`` or the name of a metric.
        clip: the highest value that is drawn, or the lowest and the highest.
        title: above the plot.

    Raises:
        ValueError: see :func:`~lightning_opt.figures.surface`; or there is no surface.

    >>> axis = np.linspace(-1, 1, 5)
    >>> bowl = {"alphas": axis, "betas": axis, "values": axis[:, None] ** 2 + axis**2}
    >>> figure = surface_3d({"lr 0.1": bowl, "lr 1": bowl})
    >>> [step.label for step in figure.layout.sliders[0].steps]
    ['lr 0.1', 'lr 1']
    """
    from plotly.graph_objects import Figure  # here, because it takes long

    by_label = labeled(surfaces)
    heights = Heights(levels(list(by_label.values()), of=of, clip=clip))
    drawn = [traces(arrays, heights, of) for arrays in by_label.values()]
    for place, group in enumerate(drawn):
        for trace in group:
            trace.visible = place == 0
    figure = Figure([trace for group in drawn for trace in group])
    figure.update_layout(layout(heights, of, title))
    if len(drawn) > 1:
        figure.update_layout(sliders=[slider(list(by_label), [len(group) for group in drawn])])
    return figure


def labeled(surfaces: Arrays | Mapping[str, Arrays]) -> Mapping[str, Arrays]:
    """Surfaces by label; the label of a single one is empty."""
    if not surfaces:
        raise ValueError("There is no surface to draw.")
    several = all(isinstance(arrays, Mapping) for arrays in surfaces.values())
    return surfaces if several else {"": surfaces}  # type: ignore[dict-item, return-value]


def traces(arrays: Arrays, heights: Heights, of: str) -> list[BaseTraceType]:
    """What is drawn of one surface: itself, its contours on the floor, the trained weights and the
    path of training."""
    from plotly.graph_objects import Surface

    alphas, betas, masked = plane(arrays, of)
    values = masked.filled(np.nan)
    extent = heights.top - heights.bottom
    # Beyond the clip the axis cuts it off; far beyond, single precision would suffer.
    z = np.clip(heights.of(values), heights.bottom - 3 * extent, heights.top + 3 * extent)
    below = bool(np.any(z < heights.bottom))
    # An array: of nested lists plotly makes one string.
    pointed = np.array(
        [
            [point(a, b, v, of) for a, v in zip(alphas, row, strict=True)]
            for b, row in zip(betas, values.T, strict=True)
        ]
    )
    grid = {"x": alphas, "y": betas, "text": pointed, "hovertemplate": "%{text}<extra></extra>"}
    lines = {
        "show": True,
        "start": heights.bottom,
        "end": heights.top,
        "size": extent / (len(heights.levels) - 1),
        "color": INK,
        "width": 1,
    }
    return [
        Surface(
            **grid,
            z=z.T,
            cmin=heights.bottom,
            cmax=heights.top,
            colorscale=shades(),
            contours={"z": lines},
            lighting={"ambient": 0.8, "diffuse": 0.45, "specular": 0.03},
            showscale=False,
            name=of,
        ),
        Surface(
            **grid,
            z=np.where(np.isnan(z), np.nan, heights.floor).T,
            surfacecolor=z.T,
            cmin=heights.bottom - (RIM * extent if below else 0),
            cmax=heights.top + RIM * extent,
            colorscale=bands(heights, below),
            lighting={"ambient": 1, "diffuse": 0, "specular": 0},
            showscale=False,
            name="floor",
        ),
        *marks(arrays, z, heights),
    ]


def shades() -> list[list[Any]]:
    """The colors of a loss, from the lowest to the clip."""
    places = np.linspace(0, 1, 33)
    return [
        [float(p), to_hex(color)] for p, color in zip(places, loss_colormap()(places), strict=True)
    ]


def bands(heights: Heights, below: bool) -> list[list[Any]]:
    """The same colors in steps at the levels, and white in a rim above and, if asked for, below."""
    edges = heights.of(heights.levels)
    rim = RIM * (edges[-1] - edges[0])
    edges = np.concatenate([[edges[0] - rim] if below else [], edges, [edges[-1] + rim]])
    edges = (edges - edges[0]) / (edges[-1] - edges[0])
    count = len(heights.levels) - 1
    inner = map(to_hex, loss_colormap()(np.linspace(0, 1, count) if count > 1 else np.zeros(1)))
    colors = [*["#ffffff"] * below, *inner, "#ffffff"]
    sides = zip(edges[:-1], edges[1:], colors, strict=True)
    return [[float(edge), color] for low, high, color in sides for edge in (low, high)]


def marks(arrays: Arrays, z: NDArray[Any], heights: Heights) -> list[BaseTraceType]:
    """The trained weights, on the floor and on the surface, and the path of training."""
    from plotly.graph_objects import Scatter3d

    alphas, betas = arrays["alphas"], arrays["betas"]
    above = heights.floor + 0.01 * (heights.top - heights.floor)  # so that the floor hides nothing
    ends = [above]
    if alphas[0] <= 0 <= alphas[-1] and betas[0] <= 0 <= betas[-1]:
        height = float(bilinear(alphas, betas, z, np.zeros(1), np.zeros(1))[0])
        ends += [height] if heights.bottom <= height <= heights.top else []
    found = [
        Scatter3d(
            x=[0.0] * len(ends),
            y=[0.0] * len(ends),
            z=ends,
            mode="lines+markers",
            marker={"symbol": "cross", "size": 5, "color": ACCENT},
            line={"color": ACCENT, "width": 3},
            hovertemplate="the trained weights<extra></extra>",
            name="minimum",
        )
    ]
    path = trajectory(arrays)
    if path is not None:
        found.append(
            Scatter3d(
                x=path[:, 0],
                y=path[:, 1],
                z=np.full(len(path), above),
                mode="lines+markers",
                marker={"size": 2, "color": DARK},
                line={"color": DARK, "width": 3},
                hovertemplate="training, α %{x:.3g}, β %{y:.3g}<extra></extra>",
                name="trajectory",
            )
        )
    return found


def point(alpha: float, beta: float, value: float, of: str) -> str:
    """What a point of the surface says when it is pointed at.

    >>> point(0.5, -1.0, 0.25, "loss")
    'α 0.5<br>β -1<br>loss 0.25'
    """
    return f"α {number(alpha)}<br>β {number(beta)}<br>{of} {number(value, 4)}"


def layout(heights: Heights, of: str, title: str | None) -> dict[str, Any]:
    """Axes, colors and margins."""
    positions, texts = heights.ticks()
    axis = {"backgroundcolor": "#f7f7f7", "gridcolor": "#dddddd", "zerolinecolor": "#dddddd"}
    ends = numbers(heights.levels)
    subtitle = f"{of}, drawn from {ends[0]} to {ends[-1]}"
    return {
        "title": {
            "text": title or " ",
            "subtitle": {"text": subtitle},
            "x": 0,
            "pad": {"l": 14},
            "yref": "container",
            "y": 0.97,
            "yanchor": "top",
        },
        "template": "none",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#222222"},
        "margin": {"l": 0, "r": 0, "t": 50, "b": 10},
        "showlegend": False,
        "scene": {
            "xaxis": {**axis, "title": {"text": "α"}},
            "yaxis": {**axis, "title": {"text": "β"}},
            "zaxis": {
                **axis,
                "tickvals": positions,
                "ticktext": texts,
                "title": {"text": ""},  # above the figure, where a narrow window shows it too
                # A little more than the floor, or the edge of the axis would cut into it.
                "range": [heights.floor - RIM * (heights.top - heights.floor), heights.top],
            },
            "aspectratio": {"x": 1, "y": 1, "z": 0.85},
            "camera": {"eye": {"x": 1.35, "y": -1.7, "z": 1.0}, "center": {"z": -0.12}},
        },
    }


def slider(labels: list[str], counts: list[int]) -> dict[str, Any]:
    """A slider that shows one surface's traces at a time; ``counts`` are how many each has."""
    owners = np.repeat(np.arange(len(counts)), counts)
    return {
        "steps": [
            {
                "label": label,
                "method": "restyle",
                "args": [{"visible": (owners == place).tolist()}],
            }
            for place, label in enumerate(labels)
        ],
        "currentvalue": {"visible": False},
        "pad": {"l": 30, "r": 30, "b": 20, "t": 10},
    }
