"""The cost that a run's record has, by a clock that is the test's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_opt.callbacks import TrainingCost, training_cost
from lightning_opt.callbacks._results import Named
from lightning_opt.study import meters
from lightning_opt.study.logger import RunLogger
from lightning_opt.study.meters import Diverged, RunCost, StopOnDivergence


class Clock:
    """Time passes only where the test says so; the clock of the day is 1000 seconds ahead."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return 1000 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meters, "time", clock)
    monkeypatch.setattr(training_cost, "time", clock)
    return clock


class Line(LightningModule):
    """Three steps of 2 seconds after 7; the loss is NaN from step ``bad`` on."""

    def __init__(self, clock: Clock, bad: int = 99) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(5))
        self.clock, self.bad = clock, bad

    def on_train_start(self) -> None:
        self.clock.now += 7

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.clock.now += 2
        loss = (self.weight * batch).sum()
        return loss * float("nan") if self.global_step >= self.bad else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(3), batch_size=1)  # type: ignore[arg-type]


class Looks(Named):
    """Stands for an analysis."""

    def __init__(self, clock: Clock) -> None:
        super().__init__("looks")
        self.clock = clock

    def on_train_end(self, *args: Any) -> None:
        self.clock.now += 30


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    usual: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": RunLogger(folder),
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**usual, **options}, callbacks=list(callbacks))


def test_startup_and_analysis_are_apart(clock: Clock, tmp_path: Path):
    cost = RunCost(scheduled=990)
    trainer(tmp_path, Looks(clock), StopOnDivergence(), cost).fit(Line(clock))
    cost.finish()
    found = cost.scalars()
    assert found["startup_seconds"] == 10 + 7
    assert found["train_seconds"] == 6 and found["steps"] == 3
    assert found["seconds_per_step"] == 2
    assert found["analysis_seconds"] == 30
    assert found["optimizer_bytes"] == found["parameters"] * 4 == 20
    assert found["peak_memory_bytes"] > 10**7


def test_what_differs_between_repetitions_is_in_no_file(clock: Clock, tmp_path: Path):
    trainer(tmp_path, RunCost(scheduled=990)).fit(Line(clock))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    assert "seconds" not in (tmp_path / "metrics.csv").read_text()


def test_a_run_that_diverges_has_a_cost(clock: Clock, tmp_path: Path):
    cost = RunCost(scheduled=990)
    with pytest.raises(Diverged):
        trainer(tmp_path, StopOnDivergence(), cost).fit(Line(clock, bad=1))
    found = cost.scalars()
    assert found["steps"] == 2 and found["train_seconds"] == 4
    assert found["startup_seconds"] == 17
    assert found["optimizer_bytes"] == 20
    assert "analysis_seconds" not in found


def test_a_run_without_training_has_no_numbers(clock: Clock, tmp_path: Path):
    cost = RunCost(scheduled=990)
    trainer(tmp_path, cost, max_epochs=0).fit(Line(clock))
    cost.finish()
    assert cost.scalars() == {}


def test_beside_one_of_the_users(clock: Clock, tmp_path: Path):
    cost, users = RunCost(scheduled=990), TrainingCost()
    trainer(tmp_path, users, cost).fit(Line(clock))
    assert cost.result is not None and users.result is not None
    assert cost.result.scalars() == users.result.scalars()
    assert (tmp_path / "cost.npz").exists()
