"""Copies in whatever loggers there are, without a change to what is monitored."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

import pytest

from classifier import Plain
from lightning_opt.callbacks import HessianSpectrum, LossLine, LossSurface, TrainingCost


class Monitored(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss


def callbacks() -> list[Any]:
    return [
        HessianSpectrum(steps=4, batches=1, top=2, bottom=1, every_n_epochs=1),
        LossSurface(resolution=(3, 3), batches=1),
        LossLine(resolution=3, batches=1, name="my_line"),
        TrainingCost(),
    ]


SCALARS = {"spectrum/largest_eigenvalue", "spectrum/trace", "surface/lowest", "surface/highest"}
SCALARS |= {"my_line/lowest", "my_line/highest", "cost/seconds_per_step", "cost/optimizer_bytes"}


def test_csv(fit, tmp_path):
    spectrum, *others = callbacks()
    logger = importlib.import_module("pytorch_lightning.loggers").CSVLogger(tmp_path)
    trainer = fit(Monitored(), spectrum, *others, logger=logger, max_epochs=2)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) >= SCALARS
    # At the end of both epochs, and at the end of training.
    found = [(r["step"], r["spectrum/trace"]) for r in rows if r["spectrum/trace"]]
    assert [step for step, _ in found] == ["2", "5", "5"]
    assert float(found[-1][1]) == spectrum.result.trace
    assert set(trainer.callback_metrics) == {"train_loss"}


def test_csv_is_written_at_once(fit, tmp_path):
    """The run may end before its logger would write."""
    seen = []

    class Looks(TrainingCost):
        def on_train_end(self, trainer, pl_module):
            path = Path(trainer.log_dir) / "metrics.csv"
            seen.append(path.exists() and "spectrum/trace" in path.read_text())

    logger = importlib.import_module("pytorch_lightning.loggers").CSVLogger(tmp_path)
    epochs = HessianSpectrum(steps=2, batches=1, every_n_epochs=1)
    fit(Plain(), epochs, Looks(), logger=logger, log_every_n_steps=1000)
    assert seen == [True]


@pytest.mark.parametrize("flavor", ["pytorch_lightning", "lightning.pytorch"])
def test_tensorboard(fit, tmp_path, flavor):
    pytest.importorskip("tensorboard")
    loggers = pytest.importorskip(f"{flavor}.loggers")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = loggers.TensorBoardLogger(tmp_path)
    fit(Monitored(), *callbacks(), logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert set(events.Tags()["scalars"]) >= SCALARS
    pictures = {"spectrum/figure", "spectrum-history/figure", "surface/figure", "my_line/figure"}
    assert set(events.Tags()["images"]) == pictures
    assert {event.step for event in events.Scalars("spectrum/trace")} == {2}
    assert (Path(logger.log_dir) / "spectrum.npz").exists()


@pytest.mark.filterwarnings("ignore")  # W&B's own
@pytest.mark.parametrize("flavor", ["pytorch_lightning", "lightning.pytorch"])
def test_wandb(fit, tmp_path, monkeypatch, flavor):
    wandb = pytest.importorskip("wandb")
    loggers = pytest.importorskip(f"{flavor}.loggers")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = loggers.WandbLogger(project="p", save_dir=tmp_path, offline=True)
    fit(Monitored(), *callbacks(), logger=logger)
    run = logger.experiment
    summary = dict(run.summary)
    table = summary["spectrum/table"]
    picture = summary["surface/figure"]
    wandb.finish()
    assert set(summary) >= SCALARS
    assert table["nrows"] == 3
    assert table["ncols"] == 2
    assert picture["count"] == 1
    # Runs share save_dir: the files are in the run's own folder.
    assert (tmp_path / "p" / logger.version / "spectrum.npz").exists()
