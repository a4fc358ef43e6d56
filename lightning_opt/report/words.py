"""Numbers, points and metrics in words."""

from __future__ import annotations

import math

from lightning_opt.figures.style import number

from .records import Point
from .statistics import Interval, learning_rate_key

NOTHING = "–"
LONG = {"val": "validation", "train": "training"}


def metric_name(metric: str) -> str:
    """A metric in words.

    >>> metric_name("val_accuracy")
    'validation accuracy'
    """
    return " ".join(LONG.get(part, part) for part in metric.split("_"))


def is_fraction(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    return metric.endswith("accuracy")


def value(x: float, metric: str = "") -> str:
    """A value of a metric.

    >>> value(0.9714, "val_accuracy"), value(1.234567), value(float("nan"))
    ('97.14 %', '1.23', '–')
    """
    if math.isnan(x):
        return NOTHING
    return f"{100 * x:.2f} %" if is_fraction(metric) else number(x)


def spread(found: Interval, metric: str) -> str:
    """A mean with the half-width of its interval.

    >>> spread(Interval(0.97, 0.96, 0.98, 3), "test_accuracy")
    '97.00 ± 1.00 %'
    """
    if math.isnan(found.low):
        return value(found.mean, metric)
    if is_fraction(metric):
        return f"{100 * found.mean:.2f} ± {100 * found.half_width:.2f} %"
    return f"{number(found.mean)} ± {number(found.half_width)}"


def seconds(x: float) -> str:
    """A duration in the unit that suits it.

    >>> seconds(0.00123), seconds(4.2), seconds(125.0), seconds(7260.0)
    ('1.23 ms', '4.2 s', '2 min 5 s', '2 h 1 min')
    """
    if math.isnan(x):
        return NOTHING
    if x < 1:
        return f"{number(1000 * x)} ms"
    if x < 60:
        return f"{number(x)} s"
    minutes, rest = divmod(round(x), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(x: float) -> str:
    """A number of bytes.

    >>> size(512.0), size(41_200.0), size(3.1e9)
    ('512 B', '41.2 kB', '3.1 GB')
    """
    if math.isnan(x):
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if x < 1000:
            return f"{number(x)} {unit}"
        x /= 1000
    return f"{number(x)} TB"


def point_name(point: Point) -> str:
    """All options of a point; the learning rate alone needs no name.

    >>> point_name((("base.lr", 0.01),)), point_name((("lr", 0.01), ("k", 5)))
    ('0.01', 'lr=0.01, k=5')
    """
    if len(point) == 1 and learning_rate_key(point):
        return option(point[0][1])
    return ", ".join(f"{key}={option(x)}" for key, x in point) or "defaults"


def option(x: object) -> str:
    """An option's value."""
    return number(x) if isinstance(x, float) else str(x)


def listed(names: list[str]) -> str:
    """A list in a sentence.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """A count with its noun.

    >>> plural(1, "run"), plural(3, "run"), plural(2, "entry", "entries")
    ('1 run', '3 runs', '2 entries')
    """
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"
