"""The logger of a study's runs: everything that a module logs, in one ``metrics.csv``."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from lightning_opt.files import replacing

_SECONDS_BETWEEN_WRITES = 10


class RunLogger(Logger):
    """Writes ``metrics.csv`` into the run directory, whole each time.

    It is written before every checkpoint, at the end, and every ten seconds in between. A run that
    continues from a checkpoint continues the file, without a gap or a repeated row. (Lightning's
    ``CSVLogger`` deletes the file of the interrupted run.)

    Args:
        directory: The run directory; Lightning's ``trainer.log_dir``.
        resume_step: Optimizer steps behind the checkpoint that the run continues from; 0 starts
            a new file.

    Raises:
        ValueError, KeyError: the file to continue is not one of this class.

    The file has a row for each call of ``log_metrics``: ``step`` (optimizer steps before it),
    ``epoch``, and a column for each metric, empty where a row does not have it.
    """

    def __init__(self, directory: Path, resume_step: int = 0) -> None:
        super().__init__()
        self._directory = directory
        self._written = time.monotonic()
        self._rows: list[dict[str, str]] = []
        if resume_step > 0:
            self._rows = [row for row in _read(self.path) if int(row["step"]) < resume_step]

    @property
    def path(self) -> Path:
        return self._directory / "metrics.csv"

    @property
    def save_dir(self) -> str:
        return str(self._directory)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": str(step or 0)}
        for name, value in metrics.items():
            row[name] = str(int(value)) if name == "epoch" else repr(float(value))
        self._rows.append(row)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """``config.yaml`` holds them."""

    @rank_zero_only
    def save(self) -> None:
        # Lightning calls this after every log_metrics; each time to write it all would be
        # quadratic in the length of the run.
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self.write()

    @rank_zero_only
    def write(self) -> None:
        """Writes every row so far."""
        self._written = time.monotonic()
        columns = dict.fromkeys(["step", "epoch", *(name for row in self._rows for name in row)])
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(self._rows)

    def finalize(self, status: str) -> None:
        self.write()


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if value} for row in rows]
