"""A run directory: what is written in it, and what it says when a study starts again.

``record.json`` is written last. A directory without one is a run that has not started, is running,
or was interrupted; it continues from ``checkpoints/``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from lightning_opt.errors import UsageError
from lightning_opt.files import write_json

from .grid import Cell

FORMAT = 1  # of study.json and record.json
Status = Literal["finished", "diverged", "failed"]
STATUSES: tuple[Status, ...] = ("finished", "diverged", "failed")

MANIFEST = "study.json"
RECORD = "record.json"
LOG = "log.txt"
RESUME = "checkpoints/resume.ckpt"  # while the run is not complete
FINAL = "checkpoints/final.ckpt"

USAGE = 2  # the exit code of a worker whose error would come again


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        status: ``finished``, ``diverged`` (a result: the loss or a metric is not finite), or
            ``failed`` (an error).
        metrics: Final metrics by name.
        cost: Seconds, steps and bytes, by name.
        error: The end of the log of a failed run.
        device: What it computed on: the accelerator, and the number of threads, which rounding
            and time depend on.
    """

    status: Status
    metrics: Mapping[str, float]
    cost: Mapping[str, float]
    error: str | None = None
    device: Mapping[str, str | int] = field(default_factory=dict)


def write_record(
    directory: Path, cell: Cell, outcome: Outcome, *, attempts: int, started: str, ended: str
) -> None:
    """Writes ``record.json``, which makes the run complete. Times are ISO 8601 in UTC."""
    write_json(
        directory / RECORD,
        {
            "format": FORMAT,
            "status": outcome.status,
            "hash": cell.hash,
            "cell": cell.to_json(),
            "metrics": _json_numbers(outcome.metrics),
            "cost": _json_numbers(outcome.cost),
            "versions": versions(),
            "hardware": {**hardware(), **outcome.device},
            "attempts": attempts,
            "error": outcome.error,
            "started": started,
            "ended": ended,
        },
    )


def read_record(directory: Path, cell: Cell) -> dict[str, Any] | None:
    """The record of a cell's run; ``None`` if the run is not complete.

    Raises:
        UsageError: there is a record, but it is truncated or belongs to another cell.
    """
    path = directory / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}). Nothing was changed. To run this cell again, move "
            f"the folder {directory} away."
        ) from None
    if (
        not isinstance(record, dict)
        or record.get("format") != FORMAT
        or record.get("hash") != cell.hash
        or record.get("status") not in STATUSES
        or not isinstance(record.get("metrics"), dict)
    ):
        raise UsageError(
            f"{path} is not the record of this cell (status, format or hash differ). Nothing was "
            f"changed. To run this cell again, move the folder {directory} away."
        )
    return record


def iso_time(seconds: float) -> str:
    """A ``time.time()`` as ISO 8601 in UTC.

    >>> iso_time(0)
    '1970-01-01T00:00:00+00:00'
    """
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what produced a run. Packages are asked, not imported."""
    found = {"python": platform.python_version()}
    for package in ("lightning-opt", "torch", "pytorch-lightning", "torchvision", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware() -> dict[str, str | int]:
    return {
        "cpu": _cpu(),
        "cores": _cores(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _cores() -> int:
    # Not os.cpu_count(), which counts cores that this process may not use.
    if sys.platform != "win32" and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _json_numbers(numbers: Mapping[str, float]) -> dict[str, float | None]:
    # JSON has no NaN and no infinity; the status says that the run diverged.
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
