"""The page's tables: words for the reader, numbers for the CSV files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .records import Run, Study
from .statistics import (
    Result,
    by_learning_rate,
    edge,
    final_loss,
    interval,
    is_result,
    learning_rate,
    mean,
    top_eigenvalue,
)
from .words import NOTHING, metric_name, option, point_name, seconds, size, spread, value


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        name: of its CSV file.
        caption: what it shows.
        header: the columns' titles.
        rows: the cells in words; the first of a row names it.
        frame: the same facts in numbers.
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    frame: pd.DataFrame


def summary(study: Study, task: str, results: Sequence[Result]) -> Table:
    """Each method at its chosen learning rate, best first."""
    facts = [summary_row(study, result) for result in results]
    test = metric_name(study.test_metric)
    header = [
        "optimizer",
        "learning rate",
        f"{test}, mean ± 95 % interval",
        "seeds",
        "final training loss",
        "time per step",
        "training time",
        "optimizer memory",
        "top eigenvalue",
    ]
    rows = [
        [
            result.optimizer,
            NOTHING
            if result.chosen is None
            else point_name(result.chosen) + (f" ({fact['edge']})" if fact["edge"] else ""),
            spread(result.test, study.test_metric),
            f"{result.test.count} of {len(result.runs) or len(study.seeds)}"
            + (f", {result.diverged} diverged" if result.diverged else ""),
            value(fact["final_train_loss"]),
            seconds(fact["seconds_per_step"]),
            seconds(fact["train_seconds"]),
            size(fact["optimizer_bytes"]),
            value(fact["top_eigenvalue"]),
        ]
        for result, fact in zip(results, facts, strict=True)
    ]
    caption = (
        f"{task}: every optimizer at the learning rate with the best {metric_name(study.metric)}, "
        f"best {test} first. Costs are means over the seeds that finished."
    )
    return Table(f"{task}-summary", caption, header, rows, pd.DataFrame(facts))


def summary_row(study: Study, result: Result) -> dict[str, Any]:
    """The numbers of a row of :func:`summary`."""
    finished, chosen = result.finished, result.chosen

    def cost(key: str) -> float:
        return mean(run.cost.get(key, math.nan) for run in finished)

    rate = None if chosen is None else learning_rate(chosen)
    validation = interval(run.metrics.get(study.metric, math.nan) for run in finished)
    return {
        "optimizer": result.optimizer,
        "point": "" if chosen is None else point_name(chosen),
        "learning_rate": math.nan if rate is None else rate,
        "edge": edge(rate, map(learning_rate, result.grid)) or "",
        f"{study.metric}_mean": validation.mean,
        f"{study.metric}_low": validation.low,
        f"{study.metric}_high": validation.high,
        f"{study.test_metric}_mean": result.test.mean,
        f"{study.test_metric}_low": result.test.low,
        f"{study.test_metric}_high": result.test.high,
        "seeds": result.test.count,
        "diverged": result.diverged,
        "final_train_loss": mean(map(final_loss, finished)),
        "seconds_per_step": cost("seconds_per_step"),
        "train_seconds": cost("train_seconds"),
        "optimizer_bytes": cost("optimizer_bytes"),
        "peak_memory_bytes": cost("peak_memory_bytes"),
        "top_eigenvalue": mean(map(top_eigenvalue, finished)),
    }


def sensitivities(study: Study, task: str, results: Sequence[Result]) -> Table:
    """The validation metric at every learning rate: the numbers behind the figure."""
    facts, rows = [], []
    for result in results:
        for rate, point in by_learning_rate(result.grid, study.metric, study.mode):
            runs = [run for run in result.grid[point] if is_result(run)]
            found = interval(
                run.metrics.get(study.metric, math.nan) for run in runs if run.status == "finished"
            )
            diverged = sum(run.status == "diverged" for run in runs)
            rows.append(
                [
                    result.optimizer,
                    point_name(point),
                    spread(found, study.metric),
                    str(found.count),
                    str(diverged),
                ]
            )
            facts.append(
                {
                    "optimizer": result.optimizer,
                    "point": point_name(point),
                    "learning_rate": math.nan if rate is None else rate,
                    "mean": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "finished": found.count,
                    "diverged": diverged,
                }
            )
    header = [
        "optimizer",
        "learning rate",
        f"{metric_name(study.metric)}, mean ± 95 % interval",
        "seeds finished",
        "seeds diverged",
    ]
    caption = f"{task}: {metric_name(study.metric)} at every learning rate."
    return Table(f"{task}-sensitivity", caption, header, rows, pd.DataFrame(facts))


def grids(study: Study) -> Table:
    """What was tried of each optimizer."""
    facts = []
    for optimizer in study.optimizers:
        cells = [run.cell for run in study.runs if run.cell.optimizer == optimizer]
        tried: dict[str, list[str]] = {}
        for key, x in (pair for cell in cells for pair in cell.point):
            if option(x) not in tried.setdefault(key, []):
                tried[key].append(option(x))
        grid = "; ".join(f"{key}: {', '.join(values)}" for key, values in tried.items())
        facts.append({"optimizer": optimizer, "grid": grid or "defaults only", "runs": len(cells)})
    rows = [[str(text) for text in fact.values()] for fact in facts]
    return Table(
        "grids",
        "The values that were tried, for each optimizer.",
        ["optimizer", "values tried", "runs"],
        rows,
        pd.DataFrame(facts),
    )


def incomplete(study: Study) -> Table:
    """The runs that failed, were not there or could not be read, and why."""
    columns = ["run", "status", "optimizer", "point", "seed", "reason"]
    facts = [
        dict(
            zip(
                columns,
                [
                    run.cell.directory,
                    status,
                    run.cell.optimizer,
                    point_name(run.cell.point),
                    run.cell.seed,
                    reason,
                ],
                strict=True,
            )
        )
        for run in study.runs
        for status, reason in troubles(run)
    ]
    rows = [[str(f[key]) for key in ("run", "status", "reason")] for f in facts]
    return Table(
        "incomplete",
        "Runs that failed, are missing or could not be read.",
        ["run", "status", "reason"],
        rows,
        pd.DataFrame(facts, columns=columns),
    )


def troubles(run: Run) -> list[tuple[str, str]]:
    """What is wrong with a run: a status and a reason for each trouble."""
    found = [("unreadable", f"{fault.file}: {fault.reason}") for fault in run.faults]
    if run.status == "failed":
        found.insert(0, ("failed", run.error or "no error was recorded"))
    if run.status == "missing":
        found.insert(0, ("missing", "has not ended yet: there is no record.json"))
    return found


def machines(study: Study) -> Table:
    """Hardware and versions, with the number of runs that had each."""
    counts: dict[str, Counter[str]] = {}
    for run in study.runs:
        facts: Mapping[str, str] = {**run.hardware, **run.versions}
        for key, text in facts.items():
            counts.setdefault(key, Counter())[text] += 1
    facts_ = [
        {"what": key, "value": text, "runs": count}
        for key, texts in counts.items()
        for text, count in sorted(texts.items())
    ]
    rows = [[str(f["what"]), str(f["value"]), str(f["runs"])] for f in facts_]
    return Table(
        "machines",
        "Hardware and versions, as the runs recorded them.",
        ["what", "value", "runs"],
        rows,
        pd.DataFrame(facts_, columns=["what", "value", "runs"]),
    )


def every_run(study: Study) -> pd.DataFrame:
    """One row for each planned run, with all of its metrics and costs."""
    rows: list[dict[str, Any]] = [
        {
            "run": run.cell.directory,
            "task": run.cell.task,
            "optimizer": run.cell.optimizer,
            "point": point_name(run.cell.point),
            "seed": run.cell.seed,
            "status": run.status,
            **run.metrics,
            **run.cost,
        }
        for run in study.runs
    ]
    frame: pd.DataFrame = pd.DataFrame(rows)
    return frame
