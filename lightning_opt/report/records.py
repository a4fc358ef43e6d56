"""Reading a study's directory: what was planned, and what each run left behind.

Nothing here computes and nothing here writes. What cannot be read is named, never guessed: a run
whose ``record.json`` is broken has the status "unreadable", and a broken ``metrics.csv`` or
``.npz`` file is as good as absent, with a note of the file and the reason in ``Run.faults``.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lightning_opt.errors import UsageError
from lightning_opt.study.records import FORMAT, MANIFEST, RECORD, STATUSES

Status: TypeAlias = Literal["finished", "diverged", "failed", "missing", "unreadable"]
Mode: TypeAlias = Literal["min", "max"]
Point: TypeAlias = tuple[tuple[str, Any], ...]
"""A place in an optimizer's grid: its options and their values, hashable."""


@dataclass(frozen=True)
class Cell:
    """One planned run."""

    hash: str
    directory: str
    task: str
    optimizer: str
    point: Point
    seed: int


@dataclass(frozen=True)
class History:
    """The training loss of a run, one entry for each logged step."""

    steps: NDArray[np.float64]
    epochs: NDArray[np.float64]
    losses: NDArray[np.float64]


@dataclass(frozen=True)
class Fault:
    """A file of a run's directory that could not be read, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Run:
    """What a cell's directory holds. Numbers that were not finite are NaN."""

    cell: Cell
    status: Status
    metrics: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    history: History | None = None
    surface: Mapping[str, NDArray[Any]] | None = None
    spectrum: Mapping[str, NDArray[Any]] | None = None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Study:
    """A study and all of its runs, in the order of the plan."""

    name: str
    description: str
    metric: str
    mode: Mode
    test_metric: str
    tasks: Mapping[str, str]
    optimizers: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]


class Unreadable(ValueError):
    """A file is not what it should be."""


def read_study(directory: Path) -> Study:
    """Reads a study's directory.

    Raises:
        UsageError: there is no ``study.json``, or it is not one that this version reads.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise UsageError(
            f"{directory} is not the directory of a study: it has no study.json.\n"
            f"`lightning-opt study NAME --out {directory}` runs a study there."
        )
    try:
        plan = read_json(path)
        selection = plan["select"]
        mode = selection["mode"]
        if mode not in ("min", "max"):
            raise Unreadable(f"its selection mode is {mode!r}, neither 'min' nor 'max'")
        return Study(
            name=str(plan["name"]),
            description=str(plan.get("description") or ""),
            metric=str(selection["metric"]),
            mode=cast(Mode, mode),
            test_metric=str(plan["test_metric"]),
            tasks={name: str(t.get("description") or "") for name, t in plan["tasks"].items()},
            optimizers=tuple(plan["optimizers"]),
            seeds=tuple(plan["seeds"]),
            runs=tuple(
                read_run(directory, cell, selection["metric"])
                for cell in map(parse_cell, plan["cells"])
            ),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"{path} cannot be read as a study: {reason}.\n"
            f"`lightning-opt study NAME --out {directory}` writes it anew and keeps finished runs."
        ) from error


def parse_cell(entry: Mapping[str, Any]) -> Cell:
    """A cell of ``study.json``.

    >>> parse_cell({"hash": "ab", "directory": "cells/x", "task": "t", "optimizer": "sgd",
    ...             "point": {"lr": 0.1}, "seed": 0}).point
    (('lr', 0.1),)
    """
    directory = PurePosixPath(entry["directory"])
    if directory.is_absolute() or ".." in directory.parts:
        raise Unreadable(f"the run directory {str(directory)!r} lies outside of the study")
    return Cell(
        hash=str(entry["hash"]),
        directory=str(directory),
        task=str(entry["task"]),
        optimizer=str(entry["optimizer"]),
        point=tuple((key, hashable(value)) for key, value in entry["point"].items()),
        seed=int(entry["seed"]),
    )


def hashable(value: Any) -> Any:
    """The value itself, or its JSON where it is a list or a mapping."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def read_run(directory: Path, cell: Cell, metric: str) -> Run:
    """Reads one run's directory; never raises for what is in it."""
    folder = directory / cell.directory
    if not (folder / RECORD).exists():
        return Run(cell, "missing")
    try:
        record = read_record(folder / RECORD, cell, metric)
    except Unreadable as error:
        fault = Fault(RECORD, str(error))
        return Run(cell, "unreadable", faults=(fault,))
    faults: list[Fault] = []

    def read(reader: Any, name: str) -> Any:
        if not (folder / name).exists():
            return None
        try:
            return reader(folder / name)
        except Unreadable as error:
            faults.append(Fault(name, str(error)))
            return None

    history = read(read_history, "metrics.csv")
    surface = read(read_surface, "surface.npz")
    spectrum = read(read_spectrum, "spectrum.npz")
    return Run(
        cell,
        record["status"],
        metrics=numbers(record.get("metrics")),
        cost=numbers(record.get("cost")),
        versions=strings(record.get("versions")),
        hardware=strings(record.get("hardware")),
        error=None if record.get("error") is None else str(record["error"]),
        history=history,
        surface=surface,
        spectrum=spectrum,
        faults=tuple(faults),
    )


def read_record(path: Path, cell: Cell, metric: str) -> Mapping[str, Any]:
    """A run's record, checked to be this cell's.

    Raises:
        Unreadable: it is truncated, of another format or of another run.
    """
    record = read_json(path)
    if record.get("status") not in STATUSES:
        raise Unreadable(f"its status is {record.get('status')!r}")
    if record.get("hash") != cell.hash:
        raise Unreadable(f"it belongs to another run, {record.get('hash')!r}")
    for key in ("metrics", "cost", "versions", "hardware"):
        if not isinstance(record.get(key) or {}, dict):
            raise Unreadable(f"its {key} are not a mapping")
    if record["status"] == "finished" and metric not in (record.get("metrics") or {}):
        raise Unreadable(f"its metrics have no {metric}, by which the study file selects")
    return record


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the format that this version reads.

    Raises:
        Unreadable: it is anything else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"it is not whole or not JSON ({error})") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise Unreadable(f"it is not of format {FORMAT}")
    return value


def read_history(path: Path) -> History:
    """The logged training losses of a ``metrics.csv``.

    Raises:
        Unreadable: it has no numbers in the columns step, epoch and train_loss, or its last line
            is cut off.
    """
    columns = ["step", "epoch", "train_loss"]
    try:
        if not path.read_bytes().endswith(b"\n"):
            raise Unreadable("its last line is cut off")
        table = pd.read_csv(path)
        numbers = table[columns].to_numpy(dtype=float)
    except (OSError, ValueError, KeyError) as error:
        raise Unreadable(in_one_line(error)) from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas took surplus fields for an index
        raise Unreadable("its lines have more fields than its header")
    logged = numbers[~np.isnan(numbers[:, 2])]  # validation has rows of its own
    if np.isnan(logged).any():
        raise Unreadable("a training loss has no step or no epoch")
    return History(*logged.T)


def read_surface(path: Path) -> Mapping[str, NDArray[Any]]:
    """The arrays of a loss surface.

    Raises:
        Unreadable: one is absent or their shapes do not fit.
    """
    arrays = read_arrays(path, ["alphas", "betas", "values"])
    expected = (*arrays["alphas"].shape, *arrays["betas"].shape)
    if arrays["values"].shape != expected or len(expected) != 2 or min(expected) < 2:
        raise Unreadable(f"values {arrays['values'].shape} do not fit alphas and betas {expected}")
    if not all((np.diff(arrays[name]) > 0).all() for name in ("alphas", "betas")):
        raise Unreadable("its alphas or betas do not increase")
    return arrays


def read_spectrum(path: Path) -> Mapping[str, NDArray[Any]]:
    """The arrays of a spectrum.

    Raises:
        Unreadable: one is absent or their shapes do not fit.
    """
    arrays = read_arrays(path, ["nodes", "weights"], optional=["eigenvalues", "residuals"])
    nodes, weights = arrays["nodes"].shape, arrays["weights"].shape
    if nodes != weights or len(nodes) != 2:
        raise Unreadable(f"nodes {nodes} and weights {weights} do not fit each other")
    used = arrays["weights"][np.isfinite(arrays["nodes"])]
    if not (used >= 0).all() or not 0 < used.sum() < np.inf:
        raise Unreadable("its weights are not those of a quadrature")
    return arrays


def read_arrays(
    path: Path, names: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, NDArray[Any]]:
    """Named numeric arrays of an ``.npz`` file, read without pickle.

    Raises:
        Unreadable: the file is broken, an array is absent or not numeric.
    """
    try:
        # np.load leaves a file open that is no archive, so it is opened here.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            wanted = [*names, *(name for name in optional if name in archive.files)]
            arrays = {name: np.asarray(archive[name]) for name in wanted}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Unreadable(in_one_line(error)) from error
    except (KeyError, AttributeError, TypeError) as error:  # no such array, or a bare .npy
        raise Unreadable(f"it is not the expected archive ({in_one_line(error)})") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "iuf":
            raise Unreadable(f"its array {name} is not numeric")
    return arrays


def numbers(values: Mapping[str, Any] | None) -> dict[str, float]:
    """The numbers among the values, NaN for null.

    >>> numbers({"a": 1, "b": None, "c": "text"})
    {'a': 1.0, 'b': nan}
    """
    return {
        key: float("nan") if value is None else as_float(value)
        for key, value in (values or {}).items()
        if value is None or isinstance(value, (int, float))
    }


def as_float(value: float) -> float:
    """The number, NaN for a whole number beyond every float."""
    try:
        return float(value)
    except OverflowError:
        return float("nan")


def strings(values: Mapping[str, Any] | None) -> dict[str, str]:
    """Every value as text."""
    return {key: str(value) for key, value in (values or {}).items()}


def in_one_line(error: Exception) -> str:
    """An error's message, short enough for a table."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:159] + "…"
