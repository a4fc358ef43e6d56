"""How soon each of the ten optimizers reaches a validation accuracy on the digits.

    .venv/bin/python benchmarks/digits.py [DIR] [--target 0.95] [--tuning-seeds 3]

Runs the study `ten` into DIR (runs/ten by default; what is there is not run again), then prints a
table and draws it into DIR/time-to-target.png. Every method has the same budget: its learning rate
is the one of five that reaches the target in the fewest steps on the tuning seeds, and what is
reported are the other seeds at that rate, so that the choice does not flatter. A run that never
reaches the target counts as the worst there is: no mean or interval hides it.

Steps are to the nearest validation, every two steps. Seconds are steps times the mean seconds of a
step of the run: forward, backward and update, with SVRG's snapshots and the factors of KFAC and
Shampoo in them; validation is apart.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import matplotlib
from scipy.special import stdtrit

NAMES = {"sgd": "SGD", "adam": "Adam", "radam": "RAdam", "amsgrad": "AMSGrad", "yogi": "Yogi"}
NAMES |= {"svrg": "SVRG", "lookahead": "Lookahead", "ranger": "Ranger", "kfac": "KFAC"}
NAMES |= {"shampoo": "Shampoo"}


@dataclass(frozen=True)
class Run:
    """A run's way to the target; steps and seconds are infinite where it never got there."""

    optimizer: str
    rate: float
    seed: int
    steps: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """A method at its chosen rate: the runs on the seeds that did not choose it."""

    optimizer: str
    rate: float
    at_edge: bool
    runs: Sequence[Run]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/ten"))
    parser.add_argument("--target", type=float, default=0.95, help="validation accuracy")
    parser.add_argument(
        "--tuning-seeds", type=int, default=3, help="the first so many seeds choose"
    )
    options = parser.parse_args()
    command = [sys.executable, "-m", "lightning_opt", "study", "ten", "--out", str(options.folder)]
    subprocess.run(command, check=True)
    rows = chosen(read(options.folder, options.target), options.tuning_seeds)
    rows.sort(key=lambda row: summary([run.steps for run in row.runs])[0])
    print(table(rows, options.target))
    picture = options.folder / "time-to-target.png"
    draw(rows, options.target, picture)
    print(f"\nDrawn: {picture}")


def read(folder: Path, target: float) -> list[Run]:
    """Every run of the study."""
    runs = []
    for cell in json.loads((folder / "study.json").read_text())["cells"]:
        directory = folder / cell["directory"]
        record = json.loads((directory / "record.json").read_text())
        (rate,) = cell["point"].values()
        steps = seconds = math.inf
        if record["status"] == "finished":
            steps = steps_to(target, directory / "metrics.csv")
            seconds = steps * record["cost"]["train_seconds"] / record["cost"]["steps"]
        runs.append(Run(cell["optimizer"], rate, cell["seed"], steps, seconds))
    return runs


def steps_to(target: float, metrics: Path) -> float:
    """Optimizer steps until validation first showed the target."""
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            if row.get("val_accuracy") and float(row["val_accuracy"]) >= target:
                return int(row["step"]) + 1  # the file counts the steps before the row
    return math.inf


def chosen(runs: Sequence[Run], tuning_seeds: int) -> list[Row]:
    seeds = sorted({run.seed for run in runs})
    tuning, fresh = set(seeds[:tuning_seeds]), set(seeds[tuning_seeds:])
    grids: dict[str, dict[float, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        grids[run.optimizer][run.rate].append(run)
    rows = []
    for optimizer, grid in grids.items():
        rate = min(grid, key=lambda rate: mean(r.steps for r in grid[rate] if r.seed in tuning))
        at_edge = rate in (min(grid), max(grid))
        rows.append(Row(optimizer, rate, at_edge, [r for r in grid[rate] if r.seed in fresh]))
    return rows


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student); infinite where a value is."""
    if math.inf in values:
        return math.inf, math.inf
    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return mean(values), half


def table(rows: Sequence[Row], target: float) -> str:
    lines = [
        f"Validation accuracy {target:.0%} on the digits; mean ± 95 % interval over "
        f"{len(rows[0].runs)} seeds that took no part in choosing the rate",
        "",
        "| method | rate | steps | seconds | ms a step | reached by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        reached = [run for run in row.runs if run.steps < math.inf]
        cells = [
            NAMES.get(row.optimizer, row.optimizer),
            f"{row.rate:.3g}" + (" (edge of its grid)" if row.at_edge else ""),
            shown(*summary([run.steps for run in row.runs]), digits=0),
            shown(*summary([run.seconds for run in row.runs]), digits=2),
            f"{1000 * mean(r.seconds / r.steps for r in reached):.1f}" if reached else "–",
            f"{len(reached)} of {len(row.runs)}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(middle: float, half: float, digits: int) -> str:
    return f"{middle:.{digits}f} ± {half:.{digits}f}" if middle < math.inf else "not by all"


def draw(rows: Sequence[Row], target: float, path: Path) -> None:
    """A row of dots for each method, one a seed, with the mean's interval below them."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    for panel, quantity in zip(axes, ("steps", "seconds"), strict=True):
        for height, row in enumerate(rows):
            values = [getattr(run, quantity) for run in row.runs]
            middle, half = summary(values)
            if middle < math.inf:
                panel.errorbar(middle, height, xerr=half, color="0.6", lw=5, zorder=1)
            finite = [value for value in values if value < math.inf]
            panel.plot(finite, [height] * len(finite), "o", ms=4, color="tab:blue", alpha=0.8)
        panel.set_xlabel(f"{quantity} to {target:.0%} validation accuracy")
        panel.set_xlim(left=0)
        panel.grid(axis="x", color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    names = []
    for row in rows:
        never = sum(run.steps == math.inf for run in row.runs)
        name = NAMES.get(row.optimizer, row.optimizer)
        names.append(f"{name}\n({never} of {len(row.runs)} never)" if never else name)
    axes[0].set_yticks(range(len(rows)), names)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=160)
    plt.close(figure)


if __name__ == "__main__":
    main()
