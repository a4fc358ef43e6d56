"""Which learning rate is chosen and what its seeds show, by numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_opt.report.records import Cell, History, Run, Status, read_study
from lightning_opt.report.statistics import (
    Interval,
    Result,
    by_learning_rate,
    choose,
    edge,
    final_loss,
    interval,
    learning_rate,
    overlapping,
    results,
)


def run(value: float | None, status: Status = "finished", seed: int = 0) -> Run:
    cell = Cell("hash", "cells/x", "task", "adam", (("lr", 0.1),), seed)
    metrics = {} if value is None else {"val": value}
    return Run(cell, status, metrics=metrics)


def point(lr: float) -> tuple[tuple[str, float], ...]:
    return (("lr", lr),)


def diverged() -> Run:
    return run(None, "diverged")


class TestInterval:
    @pytest.mark.parametrize(
        ("values", "mean", "half"),
        [
            ([1.0, 2.0, 3.0], 2.0, 4.302653 / math.sqrt(3)),  # t(0.975, 2) from the tables
            ([0.0, 1.0], 0.5, 12.706205 * math.sqrt(0.5) / math.sqrt(2)),  # t(0.975, 1)
            ([1.0, 2.0, 3.0, 4.0, 5.0], 3.0, 2.776445 * math.sqrt(2.5) / math.sqrt(5)),
        ],
    )
    def test_it_is_students(self, values: list[float], mean: float, half: float):
        found = interval(values)
        assert found.mean == pytest.approx(mean)
        assert (found.low, found.high) == pytest.approx((mean - half, mean + half), rel=1e-6)

    def test_one_value_has_none(self):
        found = interval([3.0, math.nan])
        assert (found.mean, found.count) == (3.0, 1)
        assert math.isnan(found.low)

    def test_of_nothing_there_is_nothing(self):
        assert interval([]).count == 0 and math.isnan(interval([]).mean)


class TestChoice:
    def test_the_mean_over_seeds_decides_and_not_the_best_seed(self):
        grid = {point(0.1): [run(0.9), run(0.9)], point(1.0): [run(0.99), run(0.7)]}
        assert choose(grid, "val", "max") == point(0.1)

    def test_less_is_better_where_the_study_says_so(self):
        grid = {point(0.1): [run(0.9)], point(1.0): [run(0.2)]}
        assert choose(grid, "val", "min") == point(1.0)

    @pytest.mark.parametrize("mode", ["min", "max"])
    def test_a_diverged_seed_is_worse_than_any_number(self, mode):
        lucky = 0.99 if mode == "max" else 0.01
        grid = {point(0.1): [run(0.5), run(0.5)], point(1.0): [run(lucky), diverged()]}
        assert choose(grid, "val", mode) == point(0.1)

    def test_a_metric_that_is_not_finite_counts_like_divergence(self):
        grid = {point(0.1): [run(0.5)], point(1.0): [run(math.nan)]}
        assert choose(grid, "val", "max") == point(0.1)

    def test_where_every_point_has_one_the_fewest_divergences_win(self):
        grid = {
            point(0.1): [run(0.9), diverged(), diverged()],
            point(1.0): [run(0.5), run(0.5), diverged()],
        }
        assert choose(grid, "val", "max") == point(1.0)

    def test_failed_and_missing_runs_say_nothing(self):
        grid = {
            point(0.1): [run(None, "failed"), run(None, "missing"), run(0.9)],
            point(1.0): [run(0.8), run(0.8), run(0.8)],
            point(10.0): [run(None, "missing")],
        }
        assert choose(grid, "val", "max") == point(0.1)
        assert choose({point(1.0): [run(None, "failed")]}, "val", "max") is None

    def test_equals_go_to_the_first_of_the_grid(self):
        grid = {point(0.1): [run(0.5)], point(1.0): [run(0.5)]}
        assert choose(grid, "val", "max") == point(0.1)


@pytest.mark.parametrize(
    ("value", "flag"),
    [(0.01, "lowest tried"), (0.1, None), (1.0, "highest tried"), (None, None)],
)
def test_a_choice_at_the_edge_of_its_grid_is_flagged(value: float | None, flag: str | None):
    assert edge(value, [1.0, 0.01, 0.1]) == flag


def test_a_grid_of_one_value_is_all_edge():
    assert edge(0.1, [0.1, 0.1]) == "only one tried"


def test_the_learning_rate_is_the_option_whose_last_part_is_lr():
    assert learning_rate((("k", 5), ("base.lr", 0.1))) == 0.1
    assert learning_rate((("lr_decay", 0.5),)) is None
    assert learning_rate((("lr", "auto"),)) is None


def test_other_options_are_settled_for_each_learning_rate():
    def at(lr: float, k: int) -> tuple[tuple[str, float], ...]:
        return (("lr", lr), ("k", k))

    grid = {at(1.0, 5): [run(0.1)], at(1.0, 6): [run(0.2)], at(0.1, 5): [run(0.9)], (): [run(0.5)]}
    found = by_learning_rate(grid, "val", "max")
    assert found == [(0.1, at(0.1, 5)), (1.0, at(1.0, 6)), (None, ())]


def test_the_final_loss_is_the_mean_over_the_last_epoch():
    history = History(
        np.arange(4.0), np.array([0.0, 0.0, 1.0, 1.0]), np.array([9.0, 8.0, 2.0, 1.0])
    )
    assert final_loss(Run(run(1.0).cell, "finished", history=history)) == 1.5
    assert math.isnan(final_loss(run(1.0)))


def test_overlap_is_with_the_interval_of_the_best():
    def result(name: str, low: float, high: float) -> Result:
        return Result("task", name, {}, None, Interval((low + high) / 2, low, high, 3))

    found = [result("best", 0.9, 1.0), result("touches", 0.8, 0.9), result("apart", 0.7, 0.89)]
    assert [r.optimizer for r in overlapping(found)] == ["touches"]
    assert overlapping(found[:1]) == []


def test_a_whole_study(make_study):
    """Peaks are set in the fixture: adam 0.97, lookahead 0.968, sgd 0.95; the test is 0.01 less."""
    found = results(read_study(make_study()), "digits")
    assert [r.optimizer for r in found] == ["adam", "lookahead", "sgd"]
    assert [learning_rate(r.chosen) for r in found] == [0.01, 0.01, 0.1]
    assert found[0].test.mean == pytest.approx(0.96)
    assert found[0].test.half_width == pytest.approx(4.302653 * 0.004 / math.sqrt(3), rel=1e-5)
    assert [r.optimizer for r in overlapping(found)] == ["lookahead"]


def test_a_method_that_diverged_at_its_choice_comes_last(make_study):
    """Its mean is that of the luckier seeds."""
    status = {("adam", lr, 0): "diverged" for lr in (0.001, 0.01, 0.1)}
    found = results(read_study(make_study(status=status)), "digits")
    assert [r.optimizer for r in found] == ["lookahead", "sgd", "adam"]
    assert found[-1].diverged == 1 and found[-1].test.count == 2
