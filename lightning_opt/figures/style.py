"""One look for every figure: sizes, colors, the way numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
"""Named arrays, as an ``.npz`` file holds them."""

WIDTH = 10.8  # inches: the report's column, so that a point of type is a point on the page

# matplotlib types the keys since 3.11, and the versions before it as str.
SETTINGS: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "figure.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.linewidth": 0.8,
    "xtick.color": "#777777",
    "ytick.color": "#777777",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "axes.labelcolor": "#222222",
    "text.color": "#222222",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "lightning_opt",  # ids in the SVG are the same each time
    "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's default, Type 3
}

# Okabe & Ito's colors without the yellow, which is too faint for a line on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
ACCENT = "#D55E00"  # what is marked on top of a plot
DARK = "#111111"  # a trajectory
HALO = withStroke(linewidth=3, foreground="white")  # keeps it visible on any color
INK = "#16324f"  # a contour line
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LINESTYLES = ("-", "--", ":")


def styled() -> AbstractContextManager[None]:
    """The context in which figures are made and saved; nothing outside of it changes."""
    return matplotlib.rc_context(SETTINGS)


@dataclass(frozen=True)
class Look:
    """How one method is drawn, everywhere."""

    color: str
    marker: str
    linestyle: str


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, by its place: the same names give the same looks.

    Color alone never has to tell two methods apart: markers differ too, and beyond the palette's
    seven colors the lines are dashed.

    >>> looks(["sgd", "adam"])["adam"].color
    '#D55E00'
    """
    styles = ((c, m, line) for line in cycle(LINESTYLES) for c, m in zip(PALETTE, MARKERS))  # noqa: B905
    return {name: Look(*style) for name, style in zip(names, styles, strict=False)}


def sequence(count: int) -> list[str]:
    """``count`` colors from dark to light, for values that have an order.

    >>> len(sequence(3)), sequence(3)[0]
    (3, '#0d0887')
    """
    positions = np.linspace(0.0, 0.82, count) if count > 1 else np.full(count, 0.3)
    return [to_hex(color) for color in matplotlib.colormaps["plasma"](positions)]


def loss_colormap() -> Colormap:
    """Dark at low loss, pale at high loss, white beyond the clip."""
    shades = matplotlib.colormaps["YlGnBu_r"](np.linspace(0.02, 0.97, 256))
    return LinearSegmentedColormap.from_list("loss", list(shades)).with_extremes(
        under="white", over="white"
    )


def number(value: float, digits: int = 3) -> str:
    """A number in so many digits, or whole, without the padding of an exponent.

    >>> number(0.00001), number(0.001), number(1234.5), number(1.5e6)
    ('1e-5', '0.001', '1234', '1.5e6')
    """
    if digits == 3 and 1000 <= abs(value) < 100_000:
        return f"{value:.0f}"
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{mantissa}e{int(exponent)}"


def numbers(values: Iterable[float]) -> list[str]:
    """Numbers in as many digits as tell them apart, from three on.

    >>> numbers([2.3, 2.3001, 2.3002]), numbers([0.1, 0.25])
    (['2.3', '2.3001', '2.3002'], ['0.1', '0.25'])
    """
    listed = [float(value) for value in values]
    for digits in range(3, 17):
        texts = [number(value, digits) for value in listed]
        if len(set(texts)) == len(set(listed)):
            break
    return texts


def say(ax: Axes, note: str) -> None:
    """Words in place of a plot."""
    ax.set(xticks=[], yticks=[])
    ax.set_facecolor("#f4f4f4")
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.text(0.5, 0.5, note, ha="center", va="center", color="#555555", transform=ax.transAxes)
