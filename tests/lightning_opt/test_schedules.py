"""WarmupCosine: known rates, for every kind of optimizer, over interruptions."""

from __future__ import annotations

from math import cos, pi
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import nn

from lightning_opt.configs import shipped
from lightning_opt.errors import UsageError
from lightning_opt.lightning_cli import OptLightningCLI
from lightning_opt.optimizers import Lookahead
from lightning_opt.schedules import WarmupCosine


def optimizer(*rates: float | torch.Tensor) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups)


def rates(schedule: WarmupCosine, steps: int) -> list[list[float]]:
    """Those of the present step and the next ones, for each group."""
    found = []
    for _ in range(steps):
        found.append([float(group["lr"]) for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_known_rates():
    """60 of 200 steps rise, 140 fall: half of the way down is at 130."""
    schedule = WarmupCosine(optimizer(8.0, 0.5), warmup=0.3, total_steps=200)
    found = rates(schedule, 203)
    assert found[0] == pytest.approx([8 / 61, 0.5 / 61])
    assert found[30] == pytest.approx([8 * 31 / 61, 0.5 * 31 / 61])
    assert found[60] == [8.0, 0.5]  # not one step is lost to a rate of 0
    assert found[130] == pytest.approx([4.0, 0.25])
    assert found[95] == pytest.approx([8 * (1 + cos(pi / 4)) / 2, 0.5 * (1 + cos(pi / 4)) / 2])
    assert 0 < found[199][0] < 2e-3
    assert found[200] == found[202] == [0.0, 0.0]


def test_without_warm_up_and_with_a_single_step():
    assert rates(WarmupCosine(optimizer(2.0), warmup=0.0, total_steps=4), 3) == [
        pytest.approx([2.0]),
        pytest.approx([1 + cos(pi / 4)]),
        pytest.approx([1.0]),
    ]
    assert rates(WarmupCosine(optimizer(2.0), total_steps=1), 2) == [[2.0], [0.0]]


def test_a_tensor_rate_is_changed_in_place():
    rate = torch.tensor(4.0)
    schedule = WarmupCosine(optimizer(rate), warmup=0.0)
    schedule.plan(2)
    assert rates(schedule, 2) == [[4.0], [2.0]]
    assert rate == 0.0 and schedule.optimizer.param_groups[0]["lr"] is rate


def test_a_schedule_is_planned_later():
    schedule = WarmupCosine(optimizer(3.0), warmup=0.5)
    schedule.plan(4)
    assert schedule.get_last_lr() == [1.0]
    assert rates(schedule, 3) == [[1.0], [2.0], [3.0]]


def test_unplanned_it_does_not_step():
    schedule = WarmupCosine(optimizer(3.0))
    schedule.optimizer.step()
    with pytest.raises(RuntimeError, match=r"pass total_steps=, or call plan\(total_steps\)"):
        schedule.step()


def test_a_state_knows_where_it_is_and_not_how_it_goes_on():
    """So that a run may be made longer when it is resumed."""
    first = WarmupCosine(optimizer(1.0), warmup=0.0, total_steps=10)
    rates(first, 5)
    second = WarmupCosine(optimizer(1.0), warmup=0.0, total_steps=20)
    second.load_state_dict(first.state_dict())
    assert second.total_steps == 20 and second.last_epoch == 5
    second.optimizer.step()
    second.step()
    assert second.get_last_lr() == [pytest.approx((1 + cos(pi * 6 / 20)) / 2)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warmup": 1.0}, r"warmup in \[0, 1\), got 1.0"),
        ({"warmup": -0.1}, r"warmup in \[0, 1\), got -0.1"),
        ({"total_steps": 0}, "total_steps >= 1, got 0"),
    ],
)
def test_options_out_of_range_are_named(options, words: str):
    with pytest.raises(ValueError, match=words):
        WarmupCosine(optimizer(1.0), **options)


class Rates(Callback):
    """What every step was taken with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])
        if isinstance(optimizer, Lookahead):
            assert optimizer.base.param_groups[0]["lr"] == self.seen[-1]


def fit(
    name: str, *options: str, ckpt_path: Path | None = None, callbacks=(), **overrides
) -> tuple[OptLightningCLI, list[float]]:
    """Three epochs of five steps."""
    seen = Rates()
    rate = "base.lr" if name == "lookahead" else "lr"
    cli = OptLightningCLI(
        [
            *("--config", "digits", "--optimizer", name, f"--optimizer.{rate}=0.1"),
            *("--lr_scheduler", "WarmupCosine", "--lr_scheduler.warmup=0.2"),
            *("--lr_interval=step", "--data.batch_size=220", *options),
        ],
        run=False,
        trainer_overrides={
            "accelerator": "cpu",
            "max_epochs": 3,
            "logger": False,
            "enable_checkpointing": bool(callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [seen, *callbacks],
            **overrides,
        },
    )
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=ckpt_path, weights_only=True)
    return cli, seen.seen


def expected(total: int, warmup: int = 3) -> list[float]:
    fall = total - warmup
    return [
        0.1 * ((t + 1) / (warmup + 1) if t < warmup else (1 + cos(pi * (t - warmup) / fall)) / 2)
        for t in range(total)
    ]


@pytest.mark.parametrize("name", shipped("optimizers"))
def test_the_length_is_that_of_the_training(name: str):
    """For Lookahead and Ranger, the rates of what is inside as well."""
    assert fit(name)[1] == pytest.approx(expected(15))


def test_the_length_counts_accumulated_batches_once_and_stops_at_max_steps():
    assert fit("sgd", accumulate_grad_batches=2)[1] == pytest.approx(expected(9, warmup=2))
    assert fit("sgd", max_steps=10)[1] == pytest.approx(expected(10, warmup=2))
    given = fit("sgd", "--lr_scheduler.total_steps=30")[1]
    assert given == pytest.approx(expected(30, warmup=6)[:15])


def test_per_epoch_it_counts_epochs():
    by_epoch = expected(3, warmup=1)
    seen = fit("sgd", "--lr_interval=epoch", "--lr_scheduler.warmup=0.34")[1]
    assert seen == pytest.approx([rate for rate in by_epoch for _ in range(5)])


@pytest.mark.parametrize(
    ("interval", "option"), [("step", "max_epochs or --trainer.max_steps"), ("epoch", "max_epochs")]
)
def test_a_training_without_end_is_refused(interval: str, option: str):
    with pytest.raises(UsageError, match=f"WarmupCosine .* no end: give --trainer.{option}, or"):
        fit("sgd", f"--lr_interval={interval}", max_epochs=-1, max_time="00:00:01:00")


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("step", [7, 10])
@pytest.mark.parametrize("name", ["adam", "lookahead", "ranger"])
def test_resume_is_bitwise(name: str, step: int, tmp_path: Path):
    """From the middle of an epoch, with the same batches, and from its end."""

    def saver(folder: str) -> ModelCheckpoint:
        options = {"every_n_train_steps": 1, "save_top_k": -1}
        return ModelCheckpoint(tmp_path / folder, "{step}", **options)

    whole, seen = fit(name, callbacks=[saver("whole")])
    checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
    resumed, rest = fit(name, callbacks=[saver("resumed")], ckpt_path=checkpoint)
    assert rest == seen[step:]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_shipped_200_epochs():
    """With any optimizer: five epochs rise, and the command line asks for no number of steps."""
    cli = OptLightningCLI(
        ["--config", "cifar100_resnet18_200", "--config", "adam"],
        run=False,
        trainer_overrides={"logger": False, "accelerator": "cpu"},
    )
    configured = cli.model.configure_optimizers()["lr_scheduler"]
    assert configured["interval"] == "step"
    assert isinstance(configured["scheduler"], WarmupCosine)
    assert configured["scheduler"].warmup * cli.trainer.max_epochs == 5
