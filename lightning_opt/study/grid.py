"""From a study file to its cells: task × optimizer × point of the search space × seed.

A study file is YAML::

    name: demo
    description: One line for the report.
    tasks: [digits]                      # names of shipped tasks, or paths from this file
    optimizers:
      adam:                              # a shipped optimizer of that name, or config: PATH
        space:
          lr: {low: 0.001, high: 0.1, points: 5}      # a log grid, both ends included
      lookahead:
        space:
          base.lr: [0.001, 0.01]                      # dots descend into nested classes
    seeds: [0, 1, 2]
    select: {metric: val_accuracy, mode: max}
    test_metric: test_accuracy
    trainer: {}                          # LightningCLI's trainer options, over the task's own

Everything here is plain data: no class is imported and nothing is built, so that a cell's hash is
the same on every machine, and reading a study is quick.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

import yaml

from lightning_opt.configs import resolve
from lightning_opt.errors import UsageError, did_you_mean

Scalar = bool | int | float | str
Point = Mapping[str, Scalar]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a study, as a value.

    Attributes:
        task: Name of the task.
        optimizer: Name of the optimizer.
        point: The hyper-parameters that the study varies.
        seed: Seed of the initialization and of the data order.
        config: The whole LightningCLI configuration of the run.
    """

    task: str
    optimizer: str
    point: Point
    seed: int
    config: Config

    @property
    def hash(self) -> str:
        """SHA-256 of the cell's canonical JSON, in hexadecimal.

        >>> len(Cell("digits", "sgd", {"lr": 0.1}, 0, {}).hash)
        64
        """
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def directory(self) -> str:
        """Where the cell lies below the study's directory: readable, and unique by the hash.

        >>> Cell("digits", "sgd", {"lr": 0.1}, 0, {}).directory
        'cells/digits-sgd-lr=0.1-seed=0-...'
        """
        point = "".join(f"-{key}={_short(value)}" for key, value in self.point.items())
        name = re.sub(r"[^A-Za-z0-9._=+-]", "_", f"{self.task}-{self.optimizer}{point}")
        return f"cells/{name[:120]}-seed={self.seed}-{self.hash[:8]}"

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "optimizer": self.optimizer,
            "point": dict(self.point),
            "seed": self.seed,
            "config": self.config,
        }


@dataclass(frozen=True)
class Study:
    """A study file, checked.

    Attributes:
        name: Names the study's directory.
        description: A line for the report.
        tasks: Task name to LightningCLI configuration.
        optimizers: Optimizer name to LightningCLI configuration.
        spaces: Optimizer name to the values of each of its hyper-parameters.
        seeds: Seeds, each of which every method runs.
        metric: The validation metric that the hyper-parameters are selected on.
        mode: Whether a larger or a smaller metric is better.
        test_metric: The metric reported for what was selected.
        trainer: Trainer options laid over every task's.
        task_descriptions: The first comment of each task's file.
    """

    name: str
    description: str
    tasks: Mapping[str, Config]
    optimizers: Mapping[str, Config]
    spaces: Mapping[str, Mapping[str, tuple[Scalar, ...]]]
    seeds: tuple[int, ...]
    metric: str
    mode: Literal["max", "min"]
    test_metric: str
    trainer: Config = field(default_factory=dict)
    task_descriptions: Mapping[str, str] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """All cells, seeds outermost: an interrupted study has whole grids of its first seeds."""
        return [
            Cell(task, optimizer, point, seed, self._config(task, optimizer, point, seed))
            for seed in self.seeds
            for task in self.tasks
            for optimizer in self.optimizers
            for point in _points(self.spaces[optimizer])
        ]

    def manifest(self) -> dict[str, Any]:
        """What ``study.json`` holds: the study and its cells, for the report to read."""
        return {
            "format": 1,
            "name": self.name,
            "description": self.description,
            "select": {"metric": self.metric, "mode": self.mode},
            "test_metric": self.test_metric,
            "tasks": {
                name: {"description": self.task_descriptions.get(name, "")} for name in self.tasks
            },
            "optimizers": {
                name: {"space": {key: list(values) for key, values in space.items()}}
                for name, space in self.spaces.items()
            },
            "seeds": list(self.seeds),
            "cells": [
                {
                    "hash": cell.hash,
                    "directory": cell.directory,
                    "task": cell.task,
                    "optimizer": cell.optimizer,
                    "point": dict(cell.point),
                    "seed": cell.seed,
                }
                for cell in self.cells()
            ],
        }

    def _config(self, task: str, optimizer: str, point: Point, seed: int) -> Config:
        # Not merged into the task's own: its options are not those of what is compared.
        own = {"optimizer", "lr_scheduler"} & self.optimizers[optimizer].keys()
        config = {key: value for key, value in self.tasks[task].items() if key not in own}
        config = _merged(config, self.optimizers[optimizer])
        config = _merged(config, {"trainer": self.trainer, "seed_everything": seed})
        for key, value in point.items():
            _set(config["optimizer"], key, value, f"optimizers.{optimizer}.space")
        return config


def load_study(name_or_path: str) -> Study:
    """Reads and checks a study file.

    Args:
        name_or_path: The name of a shipped study, or the path of a YAML file.

    Raises:
        UsageError: there is no such study, or something in the file is wrong; the message names
            the file, the key, the value and what would be right.

    >>> load_study("demo").name
    'demo'
    """
    path = resolve("studies", name_or_path)
    try:
        return _study(_read_yaml(path), path.parent)
    except UsageError as error:
        raise UsageError(f"In the study {path}: {error}") from None


_KEYS = (
    "name",
    "description",
    "tasks",
    "optimizers",
    "seeds",
    "select",
    "test_metric",
    "trainer",
)


def _study(content: object, folder: Path) -> Study:
    study = _mapping(content, "the file")
    _known_keys(study, _KEYS, "")
    for key in ("name", "tasks", "optimizers", "seeds", "select", "test_metric"):
        if key not in study:
            raise UsageError(f"{key} is missing.")
    name = _text(study["name"], "name")
    _file_name(name, "name")
    select = _mapping(study["select"], "select")
    _known_keys(select, ("metric", "mode"), "select.")
    mode = select.get("mode", "max")
    if mode not in ("max", "min"):
        raise UsageError(f"select.mode is max or min, got {mode!r}.")
    tasks = {}
    descriptions = {}
    for entry in _list(study["tasks"], "tasks"):
        path = resolve("tasks", _text(entry, "tasks"), folder)
        _file_name(path.stem, "a task's name, that of its file,")
        if path.stem in tasks:
            raise UsageError(f"tasks names {path.stem!r} twice.")
        tasks[path.stem] = _task(path)
        descriptions[path.stem] = _first_comment(path)
    optimizers, spaces = {}, {}
    for key, entry in _mapping(study["optimizers"], "optimizers", allow_empty=False).items():
        optimizers[key], spaces[key] = _optimizer(key, entry, folder)
    checked = Study(
        name=name,
        description=_text(study.get("description", ""), "description"),
        tasks=tasks,
        optimizers=optimizers,
        spaces=spaces,
        seeds=_seeds(study["seeds"]),
        metric=_text(select.get("metric"), "select.metric"),
        mode=mode,
        test_metric=_text(study["test_metric"], "test_metric"),
        trainer=_mapping(study.get("trainer", {}), "trainer"),
        task_descriptions=descriptions,
    )
    checked.cells()  # names what a space sets that its optimizer does not have
    return checked


def _task(path: Path) -> Config:
    """A task's LightningCLI configuration, also as ``fit --print_config`` writes it."""
    config = _mapping(_read_yaml(path), str(path))
    for key in ("ckpt_path", "weights_only"):  # arguments of fit, not of what is trained
        if config.pop(key, None) is not None:
            raise UsageError(f"{path} sets {key}, which has no place in a task: remove it.")
    return config


def _optimizer(
    name: str, entry: object, folder: Path
) -> tuple[Config, dict[str, tuple[Scalar, ...]]]:
    _file_name(name, "an optimizer's name")
    where = f"optimizers.{name}"
    options = _mapping(entry, where)
    _known_keys(options, ("config", "space"), f"{where}.")
    path = resolve("optimizers", _text(options.get("config", name), f"{where}.config"), folder)
    config = _mapping(_read_yaml(path), str(path))
    if not isinstance(config.get("optimizer"), dict) or "class_path" not in config["optimizer"]:
        raise UsageError(
            f"{path}, the configuration of {where}, has no optimizer: with class_path: below it."
        )
    space = _mapping(options.get("space"), f"{where}.space", allow_empty=False)
    return config, {key: _values(value, f"{where}.space.{key}") for key, value in space.items()}


def _values(value: object, where: str) -> tuple[Scalar, ...]:
    is_rate = where.endswith(".lr")
    values = _log_grid(value, where) if isinstance(value, dict) else _list(value, where)
    for item in values:
        if not isinstance(item, (bool, int, float, str)):
            raise UsageError(f"{where} holds numbers, texts and booleans, got {item!r}.")
        if is_rate and not (_is_number(item) and float(item) > 0):
            raise UsageError(f"{where} is a learning rate, a number above 0; got {_shown(item)}.")
    if len(set(values)) < len(values):
        raise UsageError(f"{where} has a value twice: {list(values)}.")
    return tuple(values)


def _log_grid(grid: Mapping[str, Any], where: str) -> list[float]:
    _known_keys(grid, ("low", "high", "points"), f"{where}.")
    for key in ("low", "high", "points"):
        if not _is_number(grid.get(key)):
            raise UsageError(f"{where}.{key} is a number, got {grid.get(key)!r}.")
    low, high, points = grid["low"], grid["high"], grid["points"]
    if not 0 < low < high:
        raise UsageError(f"{where} needs 0 < low < high, got low={low}, high={high}.")
    if not isinstance(points, int) or points < 2:
        raise UsageError(f"{where}.points is a whole number of at least 2, got {points!r}.")
    # Four digits: 0.003162 rather than 0.0031622776601683794 in names, tables and hashes.
    inner = [low * (high / low) ** (i / (points - 1)) for i in range(1, points - 1)]
    return [low, *(float(f"{value:.4g}") for value in inner), high]


def _seeds(value: object) -> tuple[int, ...]:
    seeds = _list(value, "seeds")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise UsageError(f"seeds are whole numbers from 0 to 2**32 - 1, got {seed!r}.")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds has a value twice: {seeds}.")
    return tuple(seeds)


def _points(space: Mapping[str, tuple[Scalar, ...]]) -> Iterator[dict[str, Scalar]]:
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


def _set(instance: dict[str, Any], key: str, value: Scalar, where: str) -> None:
    """Sets an option of a ``{class_path, init_args}``; each dot enters a nested one."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = instance.get("init_args", {}).get(parent)
        if not isinstance(inner, dict) or "class_path" not in inner:
            raise UsageError(f"{where} sets {key!r}, but the optimizer has no class at {parent!r}.")
        instance = inner
    instance.setdefault("init_args", {})[last] = value


def _merged(base: Config, over: Config) -> dict[str, Any]:
    """A copy of ``base`` with ``over`` laid over it; mappings merge, anything else replaces."""
    merged = json.loads(json.dumps(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = json.loads(json.dumps(value))
    return merged  # type: ignore[no-any-return]


class _Loader(yaml.SafeLoader):
    """YAML as LightningCLI reads it, 1e-3 being a number; a key that is given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _read_yaml(path: Path) -> object:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        json.dumps(content, allow_nan=False)  # dates and the like have no place in a config
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise UsageError(f"{path}{line} is not valid YAML: {problem}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} holds a value that is not plain data: {error}.") from None
    return content


def _first_comment(path: Path) -> str:
    """What the file's first line says of it; not the version that --print_config writes there."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    is_version = re.match(r"# \w+==", first) is not None
    return first.lstrip("# ").strip() if first.startswith("#") and not is_version else ""


def _mapping(value: object, where: str, *, allow_empty: bool = True) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{where} is a mapping of names to values, got {_shown(value)}.")
    if not (value or allow_empty):
        raise UsageError(f"{where} is empty: it needs at least one entry.")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{where} is a list, got {_shown(value)}.")
    if not value:
        raise UsageError(f"{where} is empty: it needs at least one entry.")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where} is a text, got {_shown(value)}.")
    return value


def _file_name(name: str, what: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(
            f"{what} becomes a file's name: letters, digits, '.', '_', '-'; got {name!r}."
        )


def _known_keys(mapping: Mapping[str, object], known: Iterable[str], prefix: str) -> None:
    known = list(known)
    for key in mapping:
        if key not in known:
            raise UsageError(f"There is no option {prefix}{key}. {did_you_mean(key, known)}")


def _is_number(value: object) -> TypeGuard[float]:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text[:60]}…" if len(text) > 60 else text


def _short(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
