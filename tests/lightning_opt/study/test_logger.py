"""The metrics file of a run, through an interruption."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from lightning_opt.study.logger import RunLogger


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_metric_is_a_column_and_empty_where_it_was_not_logged(tmp_path: Path):
    logger = RunLogger(tmp_path)
    logger.log_metrics({"train_loss": 0.5, "epoch": 0}, step=0)
    logger.log_metrics({"val_loss": 0.25, "epoch": 0}, step=0)
    logger.write()
    first, second = rows(tmp_path)
    assert first == {"step": "0", "epoch": "0", "train_loss": "0.5", "val_loss": ""}
    assert second["val_loss"] == "0.25" and second["train_loss"] == ""


def test_numbers_come_back_exactly_and_nan_stays(tmp_path: Path):
    logger = RunLogger(tmp_path)
    logger.log_metrics({"a": 1 / 3, "b": math.nan, "c": math.inf}, step=0)
    logger.write()
    (row,) = rows(tmp_path)
    assert float(row["a"]) == 1 / 3
    assert math.isnan(float(row["b"])) and math.isinf(float(row["c"]))


def test_a_run_that_continues_repeats_and_loses_no_row(tmp_path: Path):
    interrupted = RunLogger(tmp_path)
    for step in range(6):
        interrupted.log_metrics({"train_loss": float(step)}, step=step)
    interrupted.write()
    continued = RunLogger(tmp_path, resume_step=4)  # the checkpoint is of four steps
    for step in range(4, 8):
        continued.log_metrics({"train_loss": float(step)}, step=step)
    continued.write()
    assert [int(row["step"]) for row in rows(tmp_path)] == list(range(8))


def test_lightnings_calls_after_every_step_do_not_write_each_time(tmp_path: Path):
    logger = RunLogger(tmp_path)
    for step in range(50):
        logger.log_metrics({"train_loss": 1.0}, step=step)
        logger.save()
    assert not logger.path.exists()
    logger.finalize("success")
    assert len(rows(tmp_path)) == 50
