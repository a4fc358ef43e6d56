"""The loss along a line: its ends, its gaps and its walls."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from lightning_opt.figures import line

C = np.linspace(-0.5, 1.5, 9)


def with_gid(figure: Figure, gid: str) -> list:
    return [drawn for drawn in figure.axes[0].lines if drawn.get_gid() == gid]


def test_the_loss_is_drawn_against_the_coefficients_whose_ends_are_marked():
    figure = line({"coefficients": C, "values": (1 - C) ** 2})
    ax = figure.axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.column_stack([C, (1 - C) ** 2]))
    assert with_gid(figure, "start")[0].get_xdata() == [0, 0]
    assert with_gid(figure, "end")[0].get_xdata() == [1, 1]
    assert [text.get_text() for text in ax.texts] == ["start", "end"]
    assert len(figure.axes) == 1 and not figure.legends


def test_an_end_that_is_not_on_the_line_is_not_marked():
    inside = np.linspace(0.2, 1.0, 5)
    figure = line({"coefficients": inside, "values": inside})
    assert not with_gid(figure, "start") and with_gid(figure, "end")
    assert figure.axes[0].get_xlim() == (0.2, 1.0)


def test_metrics_have_an_axis_of_their_own():
    arrays = {"coefficients": C, "values": C**2, "metric_accuracy": C, "metric_f1": 2 * C}
    figure = line(arrays)
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "accuracy, f1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["loss", "accuracy", "f1"]
    assert figure.axes[1].lines[0].get_linestyle() == "--"


def test_gaps_stay_gaps_and_are_marked():
    values = C**2
    values[[0, 3, 5]] = np.inf, np.nan, -np.inf
    figure = line({"coefficients": C, "values": values})
    drawn = figure.axes[0].lines[0].get_ydata()
    assert np.isnan(drawn[[0, 3, 5]]).all() and np.isfinite(np.delete(drawn, [0, 3, 5])).all()
    (crosses,) = with_gid(figure, "not finite")
    assert crosses.get_xdata().tolist() == C[[0, 3, 5]].tolist()
    lone = figure.axes[0].lines[1]
    assert lone.get_xdata().tolist() == [C[4]] and lone.get_marker() == "o"


def test_walls_beyond_the_ends_do_not_flatten_what_lies_between():
    values = np.where((0 <= C) & (C <= 1), 1 - 0.9 * C, 1e30)
    assert line({"coefficients": C, "values": values}).axes[0].get_ylim()[1] < 4


def test_a_clip_is_the_end_of_the_axis():
    top = line({"coefficients": C, "values": C**2}, clip=0.5).axes[0].get_ylim()[1]
    assert 0.5 <= top < 0.6


def test_many_decades_get_a_logarithmic_axis():
    unit = np.linspace(0, 1, 9)
    assert (
        line({"coefficients": unit, "values": 10 ** (36 * unit - 6)}).axes[0].get_yscale() == "log"
    )
    assert line({"coefficients": unit, "values": 1 + unit}).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("values", [np.full(9, np.nan), np.zeros(9), C - 7, 1e-300 + 0 * C])
def test_any_values_are_drawn(values: np.ndarray):
    figure = line({"coefficients": C, "values": values})
    figure.draw_without_rendering()
    said = [text.get_text() for text in figure.axes[0].texts]
    assert ("no finite loss" in said) == np.isnan(values).all()


def test_a_single_point_is_drawn():
    line({"coefficients": np.ones(1), "values": np.ones(1)}).draw_without_rendering()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"accuracy of shape \(3,\).*\(9,\)"):
        line({"coefficients": C, "values": C, "metric_accuracy": C[:3]})
