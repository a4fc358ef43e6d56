"""A synthetic study: directories as a study writes them, from closed formulas."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STEPS, PER_EPOCH = 300, 20


@dataclass
class Spec:
    """What a synthetic study is made of; ``outcome`` may be replaced run by run."""

    rates: Mapping[str, list[float]] = field(
        default_factory=lambda: {
            "sgd": [0.01, 0.1, 1.0],
            "adam": [0.001, 0.01, 0.1],
            "lookahead": [0.001, 0.01, 0.1],
        }
    )
    best: Mapping[str, float] = field(
        default_factory=lambda: {"sgd": 0.1, "adam": 0.01, "lookahead": 0.01}
    )
    peak: Mapping[str, float] = field(
        default_factory=lambda: {"sgd": 0.95, "adam": 0.97, "lookahead": 0.968}
    )
    tasks: tuple[str, ...] = ("digits",)
    seeds: tuple[int, ...] = (0, 1, 2)
    status: Mapping[tuple[str, float, int], str] = field(default_factory=dict)
    resolution: tuple[int, int] = (13, 11)


def accuracy(spec: Spec, optimizer: str, lr: float, seed: int) -> float:
    """A parabola in the logarithm of the learning rate, with a fixed spread over seeds."""
    decades = math.log10(lr / spec.best[optimizer])
    return max(0.1, spec.peak[optimizer] - 0.05 * decades**2 + 0.004 * (seed - 1))


def build(directory: Path, spec: Spec) -> Path:
    """Writes the study and returns its directory."""
    cells = []
    for seed in spec.seeds:
        for task in spec.tasks:
            for optimizer, rates in spec.rates.items():
                key = "base.lr" if optimizer == "lookahead" else "lr"
                for lr in rates:
                    name = f"{task}-{optimizer}-{key}={lr:g}-seed={seed}"
                    cell = {
                        "hash": hashlib.sha256(name.encode()).hexdigest(),
                        "directory": f"cells/{name}",
                        "task": task,
                        "optimizer": optimizer,
                        "point": {key: lr},
                        "seed": seed,
                    }
                    cells.append(cell)
                    status = spec.status.get((optimizer, lr, seed), "finished")
                    if status != "missing":
                        write_run(directory, spec, cell, lr, status)
    study = {
        "format": 1,
        "name": "synthetic",
        "description": "A study made up for the tests.",
        "select": {"metric": "val_accuracy", "mode": "max"},
        "test_metric": "test_accuracy",
        "tasks": {task: {"description": f"The task {task}."} for task in spec.tasks},
        "optimizers": {name: {"space": {"lr": rates}} for name, rates in spec.rates.items()},
        "seeds": list(spec.seeds),
        "cells": cells,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "study.json").write_text(json.dumps(study))
    return directory


def write_run(directory: Path, spec: Spec, cell: Mapping[str, Any], lr: float, status: str) -> None:
    folder = directory / cell["directory"]
    folder.mkdir(parents=True)
    optimizer, seed = cell["optimizer"], cell["seed"]
    value = accuracy(spec, optimizer, lr, seed)
    finished = status == "finished"
    record = {
        "format": 1,
        "status": status,
        "hash": cell["hash"],
        "cell": {**cell, "config": {}},
        "metrics": {"val_accuracy": value, "test_accuracy": value - 0.01} if finished else {},
        "cost": {
            "train_seconds": 3.0 + seed,
            "seconds_per_step": 0.0021,
            "steps": STEPS,
            "optimizer_bytes": 42_000,
            "peak_memory_bytes": 3.1e8,
            "parameters": 5_000,
        },
        "versions": {"torch": "2.9.0", "lightning_opt": "0.1.0"},
        "hardware": {"cpu": "a processor", "cores": 2, "platform": "Linux"},
        "attempts": 1,
        "error": "Traceback:\n  ValueError: <b>broken</b>" if status == "failed" else None,
        "started": "2026-01-01T00:00:00",
        "ended": "2026-01-01T00:01:00",
    }
    (folder / "record.json").write_text(json.dumps(record))
    write_metrics(folder, spec, cell, lr, status)
    if finished:
        write_arrays(folder, spec, optimizer, lr, seed)


def write_metrics(
    folder: Path, spec: Spec, cell: Mapping[str, Any], lr: float, status: str
) -> None:
    """Sparse, as loggers write it: training and validation have rows of their own."""
    random = np.random.default_rng(cell["seed"])
    decades = math.log10(lr / spec.best[cell["optimizer"]])
    lines = ["step,epoch,train_loss,val_loss,val_accuracy"]
    for step in range(STEPS // 6 if status == "diverged" else STEPS):
        loss = 2.3 * math.exp(-step / 60 * math.exp(-abs(decades))) + 0.01
        if status == "diverged":
            loss = 2.3 * math.exp(step / 4)
        epoch = step // PER_EPOCH
        lines.append(f"{step},{epoch},{loss * math.exp(0.1 * random.standard_normal())},,")
        if step % PER_EPOCH == PER_EPOCH - 1:
            lines.append(f"{step},{epoch},,{loss},0.5")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def write_arrays(folder: Path, spec: Spec, optimizer: str, lr: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    alphas, betas = (np.linspace(-1, 1, n) for n in spec.resolution)
    sharp = 4 * (1 + abs(math.log10(lr / spec.best[optimizer])))
    a, b = alphas[:, None], betas[None, :]
    values = 0.01 + sharp * (a**2 + 0.5 * b**2 + 0.3 * a * b) * (1 + 0.4 * a) + a**4
    np.savez(folder / "surface.npz", alphas=alphas, betas=betas, values=values, terms=np.array(512))
    bulk = np.sort(random.normal(0, 0.3, 40))
    outliers = sharp * np.array([1.0, 1.7, 2.5])
    nodes = np.concatenate([bulk, outliers])[None, :]
    weights = np.concatenate([np.full(40, 0.997 / 40), np.full(3, 0.001)])[None, :]
    np.savez(
        folder / "spectrum.npz",
        nodes=nodes,
        weights=weights,
        eigenvalues=np.concatenate([outliers[::-1], bulk[:2]]),
        residuals=np.zeros(5),
        trace=np.array(1.0),
        trace_stderr=np.array(np.nan),
        parameters=np.array(5000),
        terms=np.array(512),
    )


BUSY: Mapping[tuple[str, float, int], str] = {
    ("sgd", 1.0, 0): "diverged",
    ("sgd", 1.0, 1): "diverged",
    ("sgd", 1.0, 2): "diverged",
    ("adam", 0.1, 2): "diverged",
    ("adam", 0.001, 0): "failed",
    ("lookahead", 0.1, 1): "missing",
}


@pytest.fixture
def spec() -> Callable[..., Spec]:
    """Makes a :class:`Spec`."""
    return Spec


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study with the given fields of :class:`Spec`; returns its directory."""

    def make(**fields: Any) -> Path:
        return build(tmp_path / "study", Spec(**fields))

    return make


@pytest.fixture
def busy_study(make_study: Callable[..., Path]) -> Path:
    """A study with runs that diverged, failed and are missing."""
    return make_study(status=BUSY)


@pytest.fixture(scope="session")
def reported_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The busy study with its report written. To be read only."""
    from lightning_opt.report import write_report

    directory = build(tmp_path_factory.mktemp("reported") / "study", Spec(status=BUSY))
    write_report(directory)
    return directory
