"""Contour levels: round numbers that several surfaces share, clipped to a range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .plane import plane
from .style import Arrays

COUNT = 15  # levels below the clip: few enough to count, enough to see the shape

ROUNDING = 1e-6  # losses that differ by less, of their size, differ by the rounding of float32

Clip = float | tuple[float, float] | None
"""The highest value that is drawn, or the lowest and the highest; None: chosen from the values."""


def levels(
    surfaces: Sequence[Arrays], *, of: str = "loss", clip: Clip = None
) -> NDArray[np.float64]:
    """Contour levels at round numbers, which all the surfaces share.

    The last one is the clip. By default that is, for a loss, the median over the surfaces, or a
    little above the highest of their lowest losses, so that each of them shows something; for a
    metric it is the highest value. Where evenly spaced levels would leave most of what is drawn in
    the lowest band, as beside walls of extreme loss, they are spaced by the logarithm.

    Raises:
        ValueError: a clip that is not finite, or whose ends are not in order.

    >>> axis = np.linspace(-1, 1, 5)
    >>> bowl = {"alphas": axis, "betas": axis, "values": axis[:, None] ** 2 + axis**2}
    >>> levels([bowl], clip=1.0)[[0, 1, -1]].tolist()
    [0.0, 0.1, 1.0]
    >>> levels([bowl], clip=(0.5, 1.0))[[0, -1]].tolist()
    [0.5, 1.0]
    """
    floor, ceiling = checked_clip(clip)
    found = [values for values in (plane(s, of)[2].compressed() for s in surfaces) if values.size]
    if not found:
        return np.array([0.0, 1.0])
    values = np.concatenate(found)
    low = float(values.min()) if floor is None else floor
    high = ceiling if ceiling is not None else default_clip(found, of)
    flat = not high - low > ROUNDING * abs(low)  # or wholly above the clip
    if flat:
        high, ceiling = low + (abs(low) or 1.0), None
    # A loss is at least zero: the scale starts there wherever that costs little of its range.
    start = 0.0 if floor is None and 0 <= low < 0.5 * high else low
    if low > 0 and not flat and crowded(values[values < high], start, high):
        ticks = logarithmic_ticks(low, high)
    else:
        locator = MaxNLocator(COUNT, steps=[1, 2, 2.5, 5, 10])
        ticks = np.asarray(locator.tick_values(start, high))
    if ceiling is not None:
        ticks = np.append(ticks[ticks < 0.001 * ticks[0] + 0.999 * ceiling], ceiling)
    if floor is not None:
        ticks = np.append(floor, ticks[ticks > 0.999 * floor + 0.001 * ticks[-1]])
    return ticks


def checked_clip(clip: Clip) -> tuple[float | None, float | None]:
    """The lowest and the highest value to draw, None where it is free."""
    low, high = clip if isinstance(clip, tuple) else (None, clip)
    if any(end is not None and not math.isfinite(end) for end in (low, high)):
        raise ValueError(f"clip is {clip}: it has to be finite.")
    if low is not None and high is not None and not low < high:
        raise ValueError(f"clip is {clip}: the lower end comes first.")
    return low, high


def default_clip(found: Sequence[NDArray[Any]], of: str) -> float:
    """The highest value to draw of finite values, one array for each surface."""
    bottoms = [float(values.min()) for values in found]
    if of != "loss":
        return max(float(values.max()) for values in found)
    low = min(bottoms)
    return max(float(np.median(np.concatenate(found))), low + 1.2 * (max(bottoms) - low))


def crowded(values: NDArray[Any], low: float, high: float) -> bool:
    """Whether even spacing would show more than half of the values as if they were one.

    >>> crowded(np.array([1.0, 2.0, 3.0]), 0.0, 3.0), crowded(np.array([1.0, 2.0, 1e9]), 0.0, 1e9)
    (False, True)
    """
    return bool(np.mean(values < low + (high - low) / COUNT) > 0.5) if values.size else False


def logarithmic_ticks(low: float, high: float) -> NDArray[np.float64]:
    """Round numbers, 15 at most or so; the first is at most ``low``, the last at least ``high``.

    >>> logarithmic_ticks(0.03, 40.0).tolist()
    [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
    >>> logarithmic_ticks(1e-6, 1e30)[[0, 1, -1]].tolist()
    [1e-06, 0.001, 1e+30]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    choices = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3))
    digits = next((some for some in choices if len(some) * decades <= COUNT + 3), (1,))
    stride = max(1, math.ceil(decades / COUNT))
    ticks = np.array(
        [float(f"{d}e{k}") for k in range(first, last + stride, stride) for d in digits]
    )
    inside = slice(np.searchsorted(ticks, low, "right") - 1, np.searchsorted(ticks, high) + 1)
    return ticks[inside]


def is_logarithmic(levels: NDArray[Any]) -> bool:
    """Whether :func:`levels` spaced them by the logarithm; the outer gaps may end at a clip.

    >>> is_logarithmic(np.array([0.2, 1.0, 2.0, 2.5])), is_logarithmic(np.array([1, 2, 5, 10, 20]))
    (False, True)
    """
    inner = np.diff(levels)[1:-1]
    return bool(inner.size and inner.max() > 1.2 * inner.min())
