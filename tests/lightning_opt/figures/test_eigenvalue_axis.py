"""The axis of eigenvalues: a density of λ whatever the axis, and one that all of it fits on."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_opt.figures.eigenvalue_axis import EigenvalueAxis, axis_for

AXES = [EigenvalueAxis(-1.0, 100.0), EigenvalueAxis(-1.0, 100.0, bend=0.5)]


@pytest.mark.parametrize("axis", AXES, ids=["linear", "bent"])
def test_the_density_integrates_to_one_over_lambda(axis: EigenvalueAxis):
    nodes, weights = np.array([[-0.5, 0.1, 60.0]]), np.array([[0.3, 0.69, 0.01]])
    grid = axis.inverse(np.linspace(*axis.forward(np.array([-10.0, 200.0])), 40001))
    heights = axis.density(nodes, weights, grid)
    masses = 0.5 * (heights[1:] + heights[:-1]) * np.diff(grid)
    assert masses.sum() == pytest.approx(1, abs=1e-5)
    assert masses[grid[1:] > 30].sum() == pytest.approx(0.01, abs=1e-5)


@pytest.mark.parametrize("axis", AXES, ids=["linear", "bent"])
def test_there_and_back_and_the_slope_between(axis: EigenvalueAxis):
    values = np.linspace(-1, 100, 50)
    np.testing.assert_allclose(axis.inverse(axis.forward(values)), values, atol=1e-12)
    step = 1e-6
    slope = (axis.forward(values + step) - axis.forward(values - step)) / (2 * step)
    np.testing.assert_allclose(axis.slope(values), slope, rtol=1e-6)


def test_the_stated_width_is_that_of_a_bump():
    """An eigenvalue λ is smeared over σ_u √(λ² + s²)."""
    axis = EigenvalueAxis(-1.0, 100.0, bend=0.5)
    for node in (0.0, 20.0):
        width = axis.width * np.hypot(node, 0.5)
        peak = axis.density(np.array([[node]]), np.array([[1.0]]), np.array([node]))
        assert peak[0] == pytest.approx(1 / (width * np.sqrt(2 * np.pi)))


def spectrum(nodes: list[float], weights: list[float]) -> dict[str, np.ndarray]:
    return {"nodes": np.array([nodes]), "weights": np.array([weights])}


def test_an_axis_for_several_holds_all_of_them():
    axis = axis_for([spectrum([-2.0, 1.0], [0.5, 0.5]), spectrum([0.0, 7.0], [0.5, 0.5])])
    assert (axis.low, axis.high) == (-2.0, 7.0)


def test_outliers_bend_it_and_a_broad_spectrum_does_not():
    assert axis_for([spectrum([-0.1, 0.1, 100.0], [0.5, 0.49, 0.01])]).bend == pytest.approx(0.1)
    assert axis_for([spectrum([-0.1, 0.1, 100.0], [0.5, 0.1, 0.4])]).bend is None
    assert axis_for([spectrum([0.0, 100.0], [0.99, 0.01])]).bend == pytest.approx(0.1)


@pytest.mark.parametrize("nodes", [[np.nan, np.nan], []])
def test_without_a_finite_node_there_is_none(nodes: list[float]):
    assert axis_for([spectrum(nodes, nodes)]) is None
    assert axis_for([]) is None


def test_eigenvalues_that_differ_by_rounding_are_one():
    axis = axis_for([spectrum([1.0, 1.0 + 1e-15], [0.5, 0.5])])
    assert axis.extent == pytest.approx(1.0)
