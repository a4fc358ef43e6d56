"""ScheduleLength: who is told how long training takes, and who is left alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lightning_opt.callbacks import ScheduleLength
from lightning_opt.errors import UsageError


class Planned:
    def __init__(self, total_steps: int | None = None) -> None:
        self.total_steps = total_steps

    def plan(self, total_steps: int) -> None:
        self.total_steps = total_steps


def start(scheduler: object, interval: str = "step", **options: Any) -> None:
    config = SimpleNamespace(scheduler=scheduler, interval=interval)
    known = {"estimated_stepping_batches": 12, "max_epochs": 3, **options}
    trainer: Any = SimpleNamespace(lr_scheduler_configs=[config], **known)
    ScheduleLength().on_train_start(trainer, SimpleNamespace())  # type: ignore[arg-type]


@pytest.mark.parametrize(("interval", "total"), [("step", 12), ("epoch", 3)])
def test_a_scheduler_is_told_the_number_of_its_own_steps(interval: str, total: int) -> None:
    scheduler = Planned()
    start(scheduler, interval)
    assert scheduler.total_steps == total


def test_one_that_knows_it_and_one_that_does_not_ask_are_left_alone() -> None:
    """Other libraries' schedulers have a total_steps, too, as PyTorch's OneCycleLR does."""
    scheduler = Planned(5)
    start(scheduler)
    assert scheduler.total_steps == 5
    start(SimpleNamespace(total_steps=None))
    start(SimpleNamespace())


@pytest.mark.parametrize(
    ("interval", "option", "value"),
    [
        ("step", "estimated_stepping_batches", float("inf")),
        ("step", "estimated_stepping_batches", -1),  # of an iterable data set
        ("epoch", "max_epochs", -1),
        ("epoch", "max_epochs", None),
    ],
)
def test_a_training_without_end_is_refused(interval: str, option: str, value: Any) -> None:
    with pytest.raises(UsageError, match="Planned needs to know how long"):
        start(Planned(), interval, **{option: value})
