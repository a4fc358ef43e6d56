"""Eigenvalues over the steps, and the edge of stability."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_opt.figures import sharpness

STEPS = np.array([10, 20, 30])
EIGENVALUES = np.array([[4.0, 2.0], [8.0, 3.0], [16.0, 5.0]])


def labeled(figure) -> dict:
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_each_eigenvalue_has_a_curve():
    curves = labeled(sharpness({"steps": STEPS, "eigenvalues": EIGENVALUES}))
    assert list(curves) == ["λ₁", "λ₂"]
    np.testing.assert_array_equal(curves["λ₂"].get_xydata(), np.column_stack([STEPS, [2, 3, 5]]))


def test_the_edge_is_two_over_the_learning_rate():
    rates = np.array([0.1, np.nan, 0.2])
    figure = sharpness({"steps": STEPS, "eigenvalues": EIGENVALUES, "learning_rates": rates})
    (edge,) = [line for line in figure.axes[0].lines if line.get_gid() == "edge"]
    assert edge.get_linestyle() == "--" and "2/η" in edge.get_label()
    np.testing.assert_allclose(edge.get_ydata(), [20, np.nan, 10])


@pytest.mark.parametrize("rates", [np.full(3, np.nan), None])
def test_without_learning_rates_there_is_no_edge(rates: np.ndarray | None):
    arrays = {"steps": STEPS, "eigenvalues": EIGENVALUES}
    figure = sharpness(arrays if rates is None else {**arrays, "learning_rates": rates})
    assert not any(line.get_gid() == "edge" for line in figure.axes[0].lines)


def test_the_trace_is_drawn_below_on_the_same_steps():
    arrays = {"steps": STEPS, "eigenvalues": EIGENVALUES, "trace": np.array([1.0, np.inf, 3.0])}
    above, below = sharpness(arrays).axes
    assert (below.get_ylabel(), below.get_xlabel(), above.get_xlabel()) == ("trace", "step", "")
    np.testing.assert_array_equal(below.lines[0].get_ydata(), [1, np.nan, 3])
    assert above.get_xlim() == below.get_xlim()


@pytest.mark.parametrize(("rate", "scale"), [(0.1, "linear"), (1e-4, "log")])
def test_an_edge_far_above_does_not_flatten_the_curves(rate: float, scale: str):
    arrays = {"steps": STEPS, "eigenvalues": EIGENVALUES, "learning_rates": np.full(3, rate)}
    assert sharpness(arrays).axes[0].get_yscale() == scale


@pytest.mark.parametrize(
    "values", [np.full((3, 2), np.nan), -EIGENVALUES, np.ones(3), np.empty((3, 0))]
)
def test_any_values_are_drawn(values: np.ndarray):
    figure = sharpness({"steps": STEPS, "eigenvalues": values, "learning_rates": np.zeros(3)})
    figure.draw_without_rendering()
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ([] if np.isfinite(values).any() else ["no finite eigenvalue"])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"eigenvalues of shape \(2, 3\)"):
        sharpness({"steps": STEPS, "eigenvalues": EIGENVALUES.T})
