"""What a spectrum's figure says about the eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_opt.figures import spectrum


def arrays(**others: np.ndarray) -> dict[str, np.ndarray]:
    nodes = np.array([[-1.0, 0.0, 1.0, 50.0], [-0.9, 0.1, 49.0, np.nan]])
    weights = np.array([[0.2, 0.5, 0.299, 0.001], [0.3, 0.699, 0.001, 0.0]])
    return {"nodes": nodes, "weights": weights, **others}


def ticks(figure) -> list[float]:
    (marks,) = [line for line in figure.axes[0].lines if line.get_gid() == "eigenvalues"]
    return list(marks.get_xdata())


def test_the_extreme_eigenvalues_are_marked_and_the_largest_listed():
    values = np.array([50.0, 1.0, -1.0, np.nan])
    figure = spectrum(arrays(eigenvalues=values, residuals=np.array([0.0, 0.5, 0.0, 0.0])))
    assert ticks(figure) == [50.0, 1.0, -1.0]
    (listed,) = [text.get_text() for text in figure.axes[0].texts]
    assert listed.splitlines() == ["largest λ", "50", "≈ 1", "-1"]


def test_nodes_are_never_listed_as_eigenvalues():
    """Without re-orthogonalization they hold ghosts."""
    figure = spectrum(arrays())
    assert ticks(figure) == []
    assert not figure.axes[0].texts


def test_the_curve_covers_all_nodes_on_a_logarithmic_axis():
    ax = spectrum(arrays()).axes[0]
    assert ax.get_yscale() == "log"
    assert ax.get_xlim()[0] < -1 and ax.get_xlim()[1] > 50


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_picture_does_not_depend_on_the_unit_of_the_loss(scale: float):
    """The smoothing's width is relative: a scaled spectrum gives the same curve, scaled."""
    plain, scaled = arrays(), arrays()
    scaled["nodes"] = scaled["nodes"] * scale
    x1, y1 = spectrum(plain).axes[0].lines[0].get_data()
    x2, y2 = spectrum(scaled).axes[0].lines[0].get_data()
    np.testing.assert_allclose(x2, x1 * scale, atol=1e-9 * scale)
    np.testing.assert_allclose(y2, y1 / scale, rtol=1e-6)


@pytest.mark.parametrize("node", [0.0, 3.0, np.nan])
def test_a_single_node_is_drawn(node: float):
    figure = spectrum({"nodes": np.array([[node]]), "weights": np.array([[1.0]])})
    figure.draw_without_rendering()
