"""Loss curves and sensitivity curves: what is drawn where."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_opt.figures import Curve, Sensitivity, looks, sensitivity, training_loss


def with_gid(ax, gid: str) -> list:
    return [line for line in ax.lines if line.get_gid() == gid]


def test_a_method_has_the_same_look_in_every_figure_and_no_two_share_one():
    names = [f"method {k}" for k in range(12)]
    chosen = looks(names)
    assert looks(names) == chosen
    assert len({(look.color, look.linestyle) for look in chosen.values()}) == len(names)


def test_a_diverged_curve_ends_in_a_cross_and_flattens_nothing():
    steps = np.arange(50)
    good = Curve(steps, np.geomspace(2, 0.01, 50), np.full(50, 0.01), np.full(50, 2.0))
    bad = Curve(steps, np.geomspace(2, 1e30, 50), np.full(50, 2.0), np.full(50, 1e30), True)
    ax = training_loss({"good": good, "bad": bad}, looks(["good", "bad"])).axes[0]
    (cross,) = with_gid(ax, "diverged")
    assert cross.get_xdata()[0] == 49
    assert cross.get_ydata()[0] < ax.get_ylim()[1] <= 40
    assert cross.get_color() == looks(["good", "bad"])["bad"].color


def test_losses_that_a_logarithm_cannot_show_are_left_out():
    steps = np.arange(3)
    curve = Curve(steps, np.array([1.0, 0.0, np.nan]), np.zeros(3), np.ones(3))
    figure = training_loss({"a": curve}, looks(["a"]))
    figure.draw_without_rendering()
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0]


@pytest.fixture
def line() -> Sensitivity:
    """Three rates: all finished, one of three diverged, all diverged."""
    return Sensitivity(
        rates=np.array([0.01, 0.1, 1.0]),
        mean=np.array([0.9, 0.95, np.nan]),
        low=np.array([0.88, np.nan, np.nan]),
        high=np.array([0.92, np.nan, np.nan]),
        diverged=np.array([0, 1, 3]),
        runs=np.array([3, 3, 3]),
    )


def test_every_divergence_is_a_cross_with_its_count(line: Sensitivity):
    figure = sensitivity({"sgd": line}, looks(["sgd"]), label="accuracy", percent=True)
    crosses = with_gid(figure.axes[1], "diverged")
    assert [cross.get_xdata()[0] for cross in crosses] == [0.1, 1.0]
    assert [text.get_text() for text in figure.axes[1].texts] == ["1 of 3", "3 of 3"]


def test_a_mean_without_its_diverged_seeds_has_an_open_marker(line: Sensitivity):
    figure = sensitivity({"sgd": line}, looks(["sgd"]), label="accuracy")
    marked = [m for m in figure.axes[0].lines if m.get_marker() == "o" and len(m.get_xdata())]
    filled, opened = marked
    assert (filled.get_ydata().tolist(), opened.get_ydata().tolist()) == ([0.9], [0.95])
    assert opened.get_markerfacecolor() == "white" != filled.get_markerfacecolor()


def test_without_divergences_there_is_no_row_for_them(line: Sensitivity):
    clean = Sensitivity(line.rates, line.rates, line.rates, line.rates, 0 * line.runs, line.runs)
    figure = sensitivity({"sgd": clean}, looks(["sgd"]), label="accuracy")
    assert len(figure.axes) == 1
    assert figure.axes[0].get_xscale() == "log"


def test_methods_are_told_apart_where_they_coincide(line: Sensitivity):
    figure = sensitivity({"a": line, "b": line}, looks(["a", "b"]), label="accuracy")
    first, second = (c.get_segments()[0][0][0] for c in figure.axes[0].collections)
    assert first < second
    assert second / first == pytest.approx(1.03)


@pytest.mark.parametrize("best", [0.2, 0.97, 0.9999, 1.0])
def test_accuracies_are_spaced_by_their_errors_and_none_leaves_the_axes(best: float):
    """From 80 to 90 % is as far as from 95 to 97.5 %; an interval beyond 100 % is cut off."""
    zero = np.zeros(2, dtype=int)
    rates, mean = np.array([0.01, 0.1]), np.array([0.1, best])
    line = Sensitivity(rates, mean, mean - 0.05, mean + 0.05, zero, zero + 3)
    ax = sensitivity({"a": line}, looks(["a"]), label="accuracy", percent=True).axes[0]
    bottom, top = ax.get_ylim()
    assert bottom <= 0.05 and min(best, 1 - 1e-4) <= top < 1
    heights = ax.transData.transform([(1, y) for y in (0.8, 0.9, 0.95, 0.975)])[:, 1]
    assert heights[1] - heights[0] == pytest.approx(heights[3] - heights[2])
    assert all(label.get_text().endswith("%") for label in ax.get_yticklabels())
