"""The page's figures, from the runs: what to draw, and what it shows in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_opt.figures import (
    Column,
    Curve,
    Figure,
    Look,
    Sensitivity,
    looks,
    panel,
    sensitivity,
    training_loss,
)
from lightning_opt.figures.style import number

from .records import Mode, Point, Run, Study
from .statistics import (
    Result,
    Runs,
    by_learning_rate,
    final_loss,
    interval,
    is_result,
    learning_rate,
    mean,
    top_eigenvalue,
)
from .words import is_fraction, listed, metric_name, point_name, value

BINS = 150


@dataclass(frozen=True)
class Drawing:
    """A figure with its file's name and its words.

    Attributes:
        name: of its files.
        heading: above it.
        caption: how to read it, where the page does not say so for all of its kind.
        alt: what it shows, for those who do not see it.
        figure: the figure.
    """

    name: str
    heading: str
    caption: str
    alt: str
    figure: Figure


def overview(study: Study, task: str, results: Sequence[Result]) -> Iterator[Drawing]:
    """The figures that compare the methods; those without anything to show are left out."""
    by_name = looks(study.optimizers)
    makers = (draw_sensitivity, draw_losses)
    return filter(None, (make(study, task, results, by_name) for make in makers))


def panels(study: Study, results: Sequence[Result]) -> Iterator[Drawing]:
    """A figure for each method that has anything to show, if any run looked at its minimum."""
    runs = [run for result in results for runs in result.grid.values() for run in runs]
    if all(run.surface is None and run.spectrum is None for run in runs):
        return iter(())
    return filter(None, (draw_panel(study, result) for result in results))


def draw_sensitivity(
    study: Study, task: str, results: Sequence[Result], by_name: Mapping[str, Look]
) -> Drawing | None:
    """The validation metric against the learning rate."""
    lines = {
        result.optimizer: line
        for result in results
        if (line := sensitivity_of(result, study.metric, study.mode)) is not None
    }
    if not any(np.isfinite(line.mean).any() for line in lines.values()):
        return None
    label = metric_name(study.metric)
    figure = sensitivity(lines, by_name, label=label, percent=is_fraction(study.metric))
    extra = any(
        len(result.grid) > len(by_learning_rate(result.grid, study.metric, study.mode))
        for result in results
    )
    caption = (
        f"Mean {label} over seeds, with its 95 % interval, at every learning rate tried. "
        "Crosses below: runs that diverged; they are not in the means, and an open marker is a "
        "mean without them. Methods are set slightly apart so that their intervals stay visible."
        + (
            " The axis spaces accuracies by the logarithm of the errors that are left."
            if is_fraction(study.metric)
            else ""
        )
        + (" Where other options were tried too, the best of them is shown." if extra else "")
    )
    said = [describe_line(name, line, study.metric, study.mode) for name, line in lines.items()]
    alt = f"{label.capitalize()} against learning rate on {task}. " + " ".join(said)
    return Drawing(f"{task}-sensitivity", "Sensitivity to the learning rate", caption, alt, figure)


def sensitivity_of(result: Result, metric: str, mode: Mode) -> Sensitivity | None:
    """A method's line; None where it has no learning rate or nothing came of any."""
    rows = []
    for rate, point in by_learning_rate(result.grid, metric, mode):
        runs = [run for run in result.grid[point] if is_result(run)]
        if rate is None or rate <= 0 or not runs:
            continue
        finished = [run for run in runs if run.status == "finished"]
        found = interval(run.metrics.get(metric, math.nan) for run in finished)
        rows.append((rate, found.mean, found.low, found.high, len(runs) - len(finished), len(runs)))
    if not rows:
        return None
    rates, means, lows, highs, diverged, counts = map(np.array, zip(*rows, strict=True))
    return Sensitivity(rates, means, lows, highs, diverged.astype(int), counts.astype(int))


def describe_line(name: str, line: Sensitivity, metric: str, mode: Mode) -> str:
    """A line of the sensitivity figure in words."""
    diverged = [number(rate) for rate in line.rates[line.diverged > 0]]
    tail = f", diverged at {listed(diverged)}" if diverged else ""
    if not np.isfinite(line.mean).any():
        return f"{name}: no run finished{tail}."
    best = int(np.nanargmax(line.mean) if mode == "max" else np.nanargmin(line.mean))
    return f"{name}: best {value(line.mean[best], metric)} at {number(line.rates[best])}{tail}."


def draw_losses(
    study: Study, task: str, results: Sequence[Result], by_name: Mapping[str, Look]
) -> Drawing | None:
    """Training loss against steps, each method at its chosen point."""
    curves, chosen_looks, said = {}, {}, []
    for result in results:
        curve = loss_curve(result.runs)
        if curve is None or result.chosen is None:
            continue
        label = f"{result.optimizer}, {point_name(result.chosen)}"
        curves[label] = curve
        chosen_looks[label] = by_name[result.optimizer]
        said.append(f"{result.optimizer} ends at {value(mean(map(final_loss, result.finished)))}")
    if not curves:
        return None
    caption = (
        "Training loss of every optimizer at its chosen learning rate: median over seeds of the "
        f"mean over up to {BINS} spans of steps; the band holds all seeds that finished. It is the "
        "loss of the batches as they were trained on, logarithmic, and no measure of "
        "generalization."
    )
    alt = f"Training loss against steps on {task}, on a logarithmic axis: {'; '.join(said)}."
    figure = training_loss(curves, chosen_looks)
    return Drawing(f"{task}-training-loss", "Training loss", caption, alt, figure)


def loss_curve(runs: Runs) -> Curve | None:
    """The losses of several seeds in common bins of steps; None where there are none.

    Runs that diverged are drawn only where no other finished: their losses have no upper bound.
    """
    finished = [run for run in runs if run.status == "finished"]
    shown_runs = finished or [run for run in runs if run.status == "diverged"]
    histories = [run.history for run in shown_runs if run.history is not None]
    histories = [history for history in histories if np.isfinite(history.losses).any()]
    if not histories:
        return None
    steps = np.concatenate([history.steps for history in histories])
    edges = np.linspace(steps.min(), steps.max() + 1, min(BINS, np.unique(steps).size) + 1)
    count = len(edges) - 1
    binned = np.full((len(histories), count), np.nan)
    for row, history in zip(binned, histories, strict=True):
        finite = np.isfinite(history.losses)
        places = np.searchsorted(edges, history.steps[finite], side="right") - 1
        places = np.clip(places, 0, count - 1)
        sums = np.bincount(places, history.losses[finite], count)
        sizes = np.bincount(places, minlength=count)
        row[sizes > 0] = sums[sizes > 0] / sizes[sizes > 0]
    shown = np.isfinite(binned).any(axis=0)
    binned = binned[:, shown]
    return Curve(
        steps=((edges[:-1] + edges[1:] - 1) / 2)[shown],
        middle=np.nanmedian(binned, axis=0),
        low=np.nanmin(binned, axis=0),
        high=np.nanmax(binned, axis=0),
        diverged=not finished,
    )


def draw_panel(study: Study, result: Result) -> Drawing | None:
    """A method at all of its learning rates."""
    points = [point for _, point in by_learning_rate(result.grid, study.metric, study.mode)]
    columns = [column_of(point, result.grid[point]) for point in points]
    if all(c.curve is None and c.surface is None and c.spectrum is None for c in columns):
        return None
    said = "; ".join(
        describe_column(column, result.grid[point])
        for column, point in zip(columns, points, strict=True)
    )
    return Drawing(
        f"{result.task}-{result.optimizer}",
        result.optimizer,
        "",
        f"{result.optimizer} on {result.task}, for each learning rate: {said}.",
        panel(columns, title=f"{result.optimizer} on {result.task}"),
    )


def column_of(point: Point, runs: Runs) -> Column:
    """A panel's column: geometry from the first seed that has something to say."""
    first = next((run for run in runs if has_say(run)), None)
    only_rate = len(point) == 1 and learning_rate(point) is not None
    label = f"lr {point_name(point)}" if only_rate else point_name(point)
    if first is not None and first is not runs[0]:
        label += f" (seed {first.cell.seed})"
    return Column(
        label=label,
        curve=loss_curve(runs),
        surface=None if first is None else first.surface,
        spectrum=None if first is None else first.spectrum,
        note="diverged" if first is not None and first.status == "diverged" else "no data",
    )


def has_say(run: Run) -> bool:
    """Whether a run shows a minimum, or that there is none."""
    return run.status == "diverged" or run.surface is not None or run.spectrum is not None


def describe_column(column: Column, runs: Runs) -> str:
    """A panel's column in words."""
    facts = []
    if diverged := sum(run.status == "diverged" for run in runs):
        facts.append(f"{diverged} of {len(runs)} runs diverged")
    finished = [run for run in runs if run.status == "finished"]
    if not math.isnan(loss := mean(map(final_loss, finished))):
        facts.append(f"final training loss {value(loss)}")
    if not math.isnan(largest := mean(map(top_eigenvalue, finished))):
        facts.append(f"largest eigenvalue {value(largest)}")
    return f"{column.label}: {', '.join(facts) or 'no data'}"
