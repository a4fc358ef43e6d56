"""Runs one cell: LightningCLI on its configuration, then its record.

The only module of the study that imports torch and Lightning. The worker processes are forked from
a server that has imported it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from lightning_opt.errors import UsageError
from lightning_opt.files import remove_leftovers, write_text
from lightning_opt.lightning_cli import OptLightningCLI

from .grid import Cell
from .logger import RunLogger
from .meters import Diverged, RandomState, ResumePoint, RunCost, StopOnDivergence
from .records import FINAL, LOG, RESUME, USAGE, Outcome, Status, iso_time, write_record


def run_in_process(
    cell: Cell, directory: Path, attempt: int, threads: int, scheduled: float
) -> None:
    """The body of a worker process: one attempt at one cell, its output in ``log.txt``.

    Exits with 1 after an error; the scheduler then decides whether to try again. A ``UsageError``
    would come again: it is the only thing left in the log, and the exit code is 2.
    """
    _end_with_parent()
    directory.mkdir(parents=True, exist_ok=True)
    remove_leftovers(directory)
    _redirect_output(directory / LOG)
    torch.set_num_threads(threads)
    # A process of a fork server inherits that as its own way to start processes, by which each
    # worker of a data loader would import torch again. None is the platform's default.
    multiprocessing.set_start_method(None, force=True)
    try:
        run_cell(cell, directory, attempt, scheduled)
    except UsageError as error:
        print(error, flush=True)
        os._exit(USAGE)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # Not sys.exit: threads that the failed run left behind must not keep the process.
        os._exit(1)


def check_in_process(cells: Sequence[Cell], answer: Connection) -> None:
    """Builds each cell's model, data and trainer without running; answers the first error."""
    _end_with_parent()
    _redirect_output(Path(os.devnull))
    for cell in cells:
        try:
            _build(cell, Path(os.devnull), RunLogger(Path(os.devnull)), RunCost(time.time()))
        except Exception as error:  # a class of the user's may raise anything
            short = isinstance(error, UsageError)
            reason = str(error) if short else "".join(traceback.format_exception_only(error))
            answer.send(f"{cell.task} with {cell.optimizer}: {reason.strip()}")
            return
    answer.send(None)


def run_cell(cell: Cell, directory: Path, attempt: int = 1, scheduled: float | None = None) -> None:
    """Trains, tests and records one cell, from its last checkpoint if there is one.

    Args:
        cell: What to run.
        directory: Its run directory; afterwards it holds ``config.yaml``, ``metrics.csv``,
            ``checkpoints/final.ckpt``, what the callbacks save, and ``record.json``, written last.
        attempt: Counted from 1.
        scheduled: ``time.time()`` when the cell was given a process; now, if left out.
    """
    scheduled = time.time() if scheduled is None else scheduled
    logger, resume = _resume(directory, cell)
    cost = RunCost(scheduled)
    cli = _build(cell, directory, logger, cost)
    write_text(directory / "config.yaml", cli.resolved_config())
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=resume)
        cost.finish()
        cli.trainer.save_checkpoint(directory / FINAL)
        metrics = {**_floats(cli.trainer), **_test(cli.trainer, cli.model, cli.datamodule)}
        finite = all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
        status: Status = "finished" if finite else "diverged"
    except Diverged as reason:
        print(reason)
        logger.write()
        metrics, status = _floats(cli.trainer), "diverged"
    device: dict[str, str | int] = {
        "threads": torch.get_num_threads(),
        "accelerator": _accelerator(cli.trainer.strategy.root_device),
    }
    outcome = Outcome(status, metrics, cost.scalars(), device=device)
    write_record(
        directory,
        cell,
        outcome,
        attempts=attempt,
        started=iso_time(scheduled),
        ended=iso_time(time.time()),
    )
    (directory / RESUME).unlink(missing_ok=True)


def _build(cell: Cell, directory: Path, logger: RunLogger, cost: RunCost) -> OptLightningCLI:
    """The cell's model, data and trainer, with what every run of a study has beside them."""
    resume_point = ResumePoint(directory / RESUME, logger.write)
    return OptLightningCLI(
        dict(cell.config),
        run=False,
        trainer_overrides={
            "logger": logger,
            "default_root_dir": str(directory),
            "enable_checkpointing": True,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [cost, StopOnDivergence(), RandomState(cell.hash), resume_point],
        },
    )


def _test(trainer: Trainer, model: LightningModule, datamodule: Any) -> dict[str, float]:
    trainer.test(model, datamodule, verbose=False)
    return _floats(trainer)


def _floats(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _accelerator(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _resume(directory: Path, cell: Cell) -> tuple[RunLogger, Path | None]:
    """The metrics so far and the checkpoint that an interrupted run left; else a new start."""
    path = directory / RESUME
    if path.exists():
        try:
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
            if checkpoint["callbacks"][RandomState.__qualname__]["run"] != cell.hash:
                raise ValueError("it is the checkpoint of another run")
            return RunLogger(directory, resume_step=int(checkpoint["global_step"])), path
        except Exception as error:  # torch.load raises many kinds for a file that is no checkpoint
            print(f"{path} or its metrics cannot be used ({error!r}); the run starts again.")
            path.rename(path.with_suffix(".unreadable"))
    return RunLogger(directory), None


def _end_with_parent() -> None:
    """Ends this process with the scheduler, even if that is killed: its next call continues."""
    scheduler = parent_process()
    if scheduler is None:
        return

    def watch() -> None:
        wait([scheduler.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _redirect_output(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
