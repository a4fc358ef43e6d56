"""Costs whose true values are known, because the clock is the test's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from classifier import Plain, examples, read
from lightning_opt.callbacks import Cost, HessianSpectrum, SVRGSnapshot, TrainingCost
from lightning_opt.callbacks import training_cost as implementation
from lightning_opt.errors import UsageError
from lightning_opt.optimizers import SVRG


class Clock:
    """Time passes only where the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(implementation, "time", clock)
    return clock


class Timed(Plain):
    """The first step of a process takes 9 seconds, the n-th 1 + n / 8; validation 100, data 50."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        super().__init__(**options)
        self.clock, self.count = clock, 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.clock.now += 1 + self.count / 8 if self.count else 9
        self.count += 1
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.clock.now += 100

    def train_dataloader(self) -> Any:
        clock = self.clock

        def collate(rows: Any) -> Any:
            clock.now += 50
            return default_collate(rows)

        return DataLoader(examples(), batch_size=8, collate_fn=collate)

    def val_dataloader(self) -> Any:
        return DataLoader(examples(), batch_size=8)


def test_steps_evaluation_and_warmup_apart(fit, clock, tmp_path):
    cost = TrainingCost(warmup=1)
    fit(Timed(clock), cost, max_epochs=2)
    result = cost.result
    steps = [9, 1.125, 1.25, 1.375, 1.5, 1.625]
    np.testing.assert_array_equal(result.step_seconds, steps)
    np.testing.assert_array_equal(result.warm, [False] + 5 * [True])
    assert result.seconds_per_step == 1.375
    assert result.train_seconds == sum(steps)
    assert result.warmup_seconds == 9
    assert result.evaluation_seconds == 600  # three batches in two epochs, no sanity check
    assert result.forward_backward_passes == 6
    assert result.parameters == 38
    arrays = read(tmp_path / "cost.npz")
    assert arrays["seconds_per_step"] == 1.375
    assert arrays["steps"] == arrays["step"] == 6
    assert set(arrays) == {*result.to_arrays(), "epoch", "step"}


def test_accumulated_batches_are_one_step(fit, clock):
    cost = TrainingCost(warmup=0)
    fit(Timed(clock), cost, accumulate_grad_batches=2)  # the third batch is a step of its own
    np.testing.assert_array_equal(cost.result.step_seconds, [9 + 1.125, 1.25])
    assert cost.result.forward_backward_passes == 3


def test_bytes_of_the_optimizers(fit):
    cost = TrainingCost()
    fit(Plain(torch.optim.Adam), cost)
    # Two moments of 38 parameters, and four counters, in float32.
    assert cost.result.optimizer_bytes == 4 * (2 * 38 + 4)
    assert cost.result.peak_memory_bytes > 10**7


def test_hidden_passes_count_and_their_time_is_the_steps(fit):
    """SVRG's: two a step, and a snapshot of three batches before the first."""
    cost = TrainingCost()
    trainer = fit(Plain(SVRG), SVRGSnapshot(), cost)
    assert trainer.callbacks[0] is cost
    assert cost.result.forward_backward_passes == 2 * 3 + 3
    assert "backward" not in vars(trainer.strategy)


def test_the_callbacks_behind_keep_their_turn(fit):
    """It moves to the front while the trainer goes through its callbacks."""
    turns = []

    class Turn(HessianSpectrum):
        def setup(self, trainer, pl_module, stage):
            turns.append(self.name)
            super().setup(trainer, pl_module, stage)

    first, second = Turn(steps=1, name="first"), Turn(steps=1, name="second")
    fit(Plain(), first, TrainingCost(), second)
    assert turns == ["first", "second"]


def test_analysis_is_no_part_of_it(fit, clock):
    class Slow(HessianSpectrum):
        def _analyze(self, problem):
            clock.now += 10**6
            return super()._analyze(problem)

    cost = TrainingCost()
    fit(Timed(clock), Slow(steps=1, every_n_epochs=1), cost, max_epochs=2)
    assert cost.result.train_seconds + cost.result.evaluation_seconds < 1000


def test_a_resumed_run_goes_on_counting(fit, clock, tmp_path):
    first, second = TrainingCost(warmup=1), TrainingCost(warmup=1)
    trainer = fit(Timed(clock), first)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    torch.load(tmp_path / "first.ckpt", weights_only=True)
    fit(Timed(clock), second, max_epochs=2, ckpt_path=tmp_path / "first.ckpt")
    steps = 2 * [9, 1.125, 1.25]
    np.testing.assert_array_equal(second.result.step_seconds, steps)
    np.testing.assert_array_equal(second.result.warm, 2 * [False, True, True])
    assert second.result.evaluation_seconds == 600
    assert second.result.forward_backward_passes == 6


def test_it_has_a_result_after_an_exception(fit, clock):
    class Ends(Timed):
        def on_train_batch_end(self, *args):
            if self.count == 2:
                raise RuntimeError("boom")

    cost = TrainingCost(warmup=0)
    with pytest.raises(RuntimeError, match="boom"):
        fit(Ends(clock), cost)
    np.testing.assert_array_equal(cost.result.step_seconds, [9, 1.125])


def test_no_step_is_no_time():
    cost = Cost(np.array([]), np.array([], dtype=bool), 0.0, 0, 0, 0, 0)
    assert np.isnan(cost.seconds_per_step)


def test_a_negative_warmup_is_named():
    with pytest.raises(UsageError, match="warmup is -1"):
        TrainingCost(warmup=-1)
