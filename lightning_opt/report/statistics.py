"""What follows from the runs: which learning rate is chosen, and what its seeds show.

The rules are the same for every method. The chosen point of a grid is the one with the best
validation metric, averaged over seeds, where a run that diverged counts as the worst result there
is; the test set has no say. Intervals are Student's, at 95 %, over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy.special import stdtrit

from .records import Mode, Point, Run, Study

CONFIDENCE = 0.95
Runs: TypeAlias = Sequence[Run]


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; without at least two values the interval is NaN."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Result:
    """A method on a task: its grid, the point chosen from it, and that point's runs."""

    task: str
    optimizer: str
    grid: Mapping[Point, Runs]
    chosen: Point | None
    test: Interval

    @property
    def runs(self) -> Runs:
        """The runs at the chosen point."""
        return [] if self.chosen is None else self.grid[self.chosen]

    @property
    def finished(self) -> Runs:
        """Those of them that finished."""
        return [run for run in self.runs if run.status == "finished"]

    @property
    def diverged(self) -> int:
        """How many of them diverged."""
        return sum(run.status == "diverged" for run in self.runs)


def interval(values: Iterable[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval for the mean of a few values; those that are not finite are left out.

    >>> found = interval([1.0, 2.0, 3.0])
    >>> found.mean, round(found.half_width, 4)  # 4.3027 · 1 / √3
    (2.0, 2.4841)
    """
    sample = np.array([value for value in values if math.isfinite(value)])
    if sample.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, math.nan, math.nan, 1)
    quantile = float(stdtrit(sample.size - 1, 0.5 + confidence / 2))
    half = quantile * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return Interval(mean, mean - half, mean + half, int(sample.size))


def rank(runs: Runs, metric: str, mode: Mode) -> tuple[int, float]:
    """The key by which points are compared: the lowest is the best.

    A diverged run is worse than any number, so the count of those comes first; the mean of the
    others decides among equals.
    """
    values = [run.metrics.get(metric, math.nan) for run in runs if run.status == "finished"]
    finite = [value for value in values if math.isfinite(value)]
    worst = sum(run.status == "diverged" for run in runs) + len(values) - len(finite)
    if not finite:
        return worst, math.inf
    mean = math.fsum(finite) / len(finite)
    return worst, -mean if mode == "max" else mean


def choose(grid: Mapping[Point, Runs], metric: str, mode: Mode) -> Point | None:
    """The best point of a grid; None where no run of it finished or diverged.

    Of equals the first in the grid's order is taken. Runs that failed or are missing say nothing
    about a point, good or bad.
    """
    tried = [point for point, runs in grid.items() if any(map(is_result, runs))]
    return min(tried, key=lambda point: rank(grid[point], metric, mode), default=None)


def is_result(run: Run) -> bool:
    """Whether the run ended by itself: finished or diverged."""
    return run.status in ("finished", "diverged")


def results(study: Study, task: str) -> list[Result]:
    """Every method's result on a task, best mean of the test metric first.

    A method with a diverged run at its chosen point comes after all those without.
    """
    found = []
    for optimizer in study.optimizers:
        grid: dict[Point, list[Run]] = {}
        for run in study.runs:
            if run.cell.task == task and run.cell.optimizer == optimizer:
                grid.setdefault(run.cell.point, []).append(run)
        chosen = choose(grid, study.metric, study.mode)
        runs = [] if chosen is None else grid[chosen]
        test = interval(
            run.metrics.get(study.test_metric, math.nan) for run in runs if run.status == "finished"
        )
        found.append(Result(task, optimizer, grid, chosen, test))
    sign = -1.0 if mode_of(study.test_metric, study.mode) == "max" else 1.0

    def order(result: Result) -> tuple[bool, int, float]:
        return (math.isnan(result.test.mean), result.diverged, sign * result.test.mean)

    return sorted(found, key=order)


def mode_of(metric: str, default: Mode) -> Mode:
    """Whether more of a metric is better: known of the common ones by name, else ``default``.

    >>> mode_of("test_accuracy", "min"), mode_of("test_perplexity", "max")
    ('max', 'min')
    """
    if metric.endswith("accuracy"):
        return "max"
    return "min" if metric.endswith(("loss", "perplexity", "error")) else default


def overlapping(results: Sequence[Result]) -> list[Result]:
    """The methods whose interval overlaps that of the first."""
    if not results or math.isnan(results[0].test.low):
        return []
    best = results[0].test
    return [
        result
        for result in results[1:]
        if result.test.low <= best.high and result.test.high >= best.low
    ]


def learning_rate_key(point: Point) -> str | None:
    """The option that is the learning rate: the first whose last component is ``lr``.

    >>> learning_rate_key((("k", 5), ("base.lr", 0.1)))
    'base.lr'
    """
    return next((key for key, _ in point if key.rsplit(".", 1)[-1] == "lr"), None)


def learning_rate(point: Point) -> float | None:
    """The point's learning rate, if it has one that is a number."""
    value = dict(point).get(learning_rate_key(point) or "")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def edge(value: float | None, grid: Iterable[float | None]) -> str | None:
    """Where in its grid a chosen value lies, if that is at an edge.

    >>> edge(0.1, [0.1, 1.0, 10.0]), edge(1.0, [0.1, 1.0, 10.0]), edge(1.0, [1.0])
    ('lowest tried', None, 'only one tried')
    """
    tried = sorted({known for known in grid if known is not None})
    if value is None or value not in tried:
        return None
    if len(tried) == 1:
        return "only one tried"
    return {tried[0]: "lowest tried", tried[-1]: "highest tried"}.get(value)


def by_learning_rate(
    grid: Mapping[Point, Runs], metric: str, mode: Mode
) -> list[tuple[float | None, Point]]:
    """Each learning rate, in increasing order, with the best of the points that have it.

    Points without a learning rate follow, each on its own.
    """
    groups: dict[float, dict[Point, Runs]] = {}
    for point, runs in grid.items():
        if (rate := learning_rate(point)) is not None:
            groups.setdefault(rate, {})[point] = runs
    best = [
        (rate, choose(groups[rate], metric, mode) or next(iter(groups[rate])))
        for rate in sorted(groups)
    ]
    return [*best, *((None, point) for point in grid if learning_rate(point) is None)]


def final_loss(run: Run) -> float:
    """The mean training loss over the steps of the last epoch."""
    history = run.history
    if history is None or not history.losses.size:
        return math.nan
    return float(history.losses[history.epochs == history.epochs.max()].mean())


def top_eigenvalue(run: Run) -> float:
    """The largest eigenvalue that was computed; the quadrature's nodes are none."""
    values: Any = (run.spectrum or {}).get("eigenvalues", np.array([]))
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else math.nan


def mean(values: Iterable[float]) -> float:
    """The mean of the finite values; NaN where there is none."""
    return interval(values).mean
