"""What a spectrum's figure says about the eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_opt.figures import spectrum


def arrays(**others: np.ndarray) -> dict[str, np.ndarray]:
    nodes = np.array([[-1.0, 0.0, 1.0, 50.0], [-0.9, 0.1, 49.0, np.nan]])
    weights = np.array([[0.2, 0.5, 0.299, 0.001], [0.3, 0.699, 0.001, 0.0]])
    return {"nodes": nodes, "weights": weights, **others}


def marked(figure, gid: str = "eigenvalues") -> list[float]:
    (marks,) = [line for line in figure.axes[0].lines if line.get_gid() == gid]
    return list(marks.get_xdata())


def facts(figure) -> list[str]:
    (beside,) = [text for text in figure.axes[0].texts if text.get_gid() == "facts"]
    return beside.get_text().splitlines()


def test_the_extreme_eigenvalues_are_marked_and_listed():
    values = np.array([50.0, 1.0, -1.0, np.nan])
    figure = spectrum(arrays(eigenvalues=values, residuals=np.array([0.0, 0.5, 0.0, 0.0])))
    assert marked(figure) == [50.0, -1.0]
    assert marked(figure, "approximate") == [1.0]
    assert facts(figure)[:4] == ["largest λ", "50", "≈ 1", "-1"]


def test_of_many_eigenvalues_the_ends_are_listed():
    said = facts(spectrum(arrays(eigenvalues=np.array([9.0, 8, 7, 6, 5, -1, -2, -3, -4]))))
    assert said[:6] == ["largest λ", "9", "8", "7", "6", "5"]
    assert said[7:11] == ["smallest λ", "-4", "-3", "-2"]


def test_nodes_are_never_listed_as_eigenvalues():
    """Without re-orthogonalization they hold ghosts."""
    figure = spectrum(arrays(eigenvalues=np.empty(0), reorthogonalized=np.array(False)))
    assert marked(figure) == marked(figure, "approximate") == []
    assert facts(figure)[:2] == ["no eigenvalues listed:", "not re-orthogonalized"]
    assert not any("50" in line for line in facts(figure))


def test_the_trace_has_its_standard_error_if_there_is_one():
    several = arrays(trace=np.array(74.19), trace_stderr=np.array(18.4))
    assert "trace 74.2 ± 18" in facts(spectrum(several))
    single = arrays(trace=np.array(74.19), trace_stderr=np.array(np.nan))
    assert "trace 74.2" in facts(spectrum(single))


def band(figure) -> np.ndarray | None:
    found = [c for c in figure.axes[0].collections if c.get_gid() == "error"]
    return found[0].get_paths()[0].vertices if found else None


def test_several_probes_have_an_error_band():
    nodes, weights = np.array([[0.0, 1.0]] * 4), np.array([[0.5, 0.5]] * 4)
    weights[:, 1] = 0.2, 0.4, 0.6, 0.8
    weights[:, 0] = 1 - weights[:, 1]
    figure = spectrum({"nodes": nodes, "weights": weights})
    x, y = band(figure).T
    around = y[np.abs(x - 1.0) == np.abs(x - 1.0).min()]
    # The mean of the weights is 0.5, and its standard error is 0.258 / √4.
    assert around.max() / around.min() == pytest.approx((0.5 + 0.1291) / (0.5 - 0.1291), rel=0.01)
    assert "band: ± 1 standard error" in facts(figure)
    single = spectrum({"nodes": nodes[:1], "weights": weights[:1]})
    assert band(single) is None and "1 probe, 2 steps" in facts(single)


def test_the_smoothing_is_stated():
    linear = {"nodes": np.array([[0.0, 10.0]]), "weights": np.array([[0.5, 0.5]])}
    assert facts(spectrum(linear))[-1] == "σ = 0.05"
    assert (
        facts(spectrum(arrays()))[-1].startswith("σ = 0.0") and "√" in facts(spectrum(arrays()))[-1]
    )


def test_the_bulk_stays_visible_beside_outliers_far_out():
    random = np.random.default_rng(0)
    nodes = np.append(random.normal(0, 0.1, 60), [30.0, 100.0])[None]
    weights = np.append(np.full(60, 0.999 / 60), [5e-4, 5e-4])[None]
    ax = spectrum({"nodes": nodes, "weights": weights}).axes[0]
    left, right = (
        ax.transAxes.inverted().transform(ax.transData.transform((x, 1)))[0] for x in (-0.2, 0.2)
    )
    assert right - left > 0.2


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
