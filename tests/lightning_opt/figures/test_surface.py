"""Contours: the right way round, on the right scale, and honest about what is missing."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from lightning_opt.figures import surface
from lightning_opt.figures.surface import draw_surface, levels


def valley(resolution: tuple[int, int] = (41, 23)) -> dict[str, np.ndarray]:
    """a²/4 + b², twice as wide along α as along β, on a grid that is not square."""
    alphas, betas = np.linspace(-2, 2, resolution[0]), np.linspace(-1, 1, resolution[1])
    return {
        "alphas": alphas,
        "betas": betas,
        "values": alphas[:, None] ** 2 / 4 + betas[None, :] ** 2,
    }


def test_alpha_runs_to_the_right_and_beta_upward():
    """The region below 0.25 is an ellipse with half-axes 1 along x and 0.5 along y."""
    ax = Figure().subplots()
    drawn = draw_surface(ax, valley(), np.array([0.0, 0.25]))
    x, y = drawn.get_paths()[0].vertices.T
    assert (x.min(), x.max()) == pytest.approx((-1, 1), abs=0.01)
    assert (y.min(), y.max()) == pytest.approx((-0.5, 0.5), abs=0.01)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 2), (-1, 1))


def test_a_slope_falls_where_the_values_do():
    """Mirrored axes would pass with a symmetric bowl; 5 + a + 2b < 3 is one corner."""
    alphas, betas = np.linspace(-1, 1, 5), np.linspace(-1, 1, 7)
    slope = {"alphas": alphas, "betas": betas, "values": 5 + alphas[:, None] + 2 * betas}
    drawn = draw_surface(Figure().subplots(), slope, np.array([0.0, 3.0]))
    x, y = drawn.get_paths()[0].vertices.T
    assert (x.min(), x.max()) == pytest.approx((-1, 0))
    assert (y.min(), y.max()) == pytest.approx((-1, -0.5))


def test_the_minimum_is_marked_at_the_trained_weights():
    (mark,) = [line for line in surface(valley()).axes[0].lines if line.get_gid() == "minimum"]
    assert mark.get_xydata().tolist() == [[0, 0]]


@pytest.mark.parametrize("clip", [0.5, 1.5, 0.37])
def test_the_scale_ends_at_the_clip(clip: float):
    scale = levels([valley()], clip=clip)
    assert scale[0] == 0 and scale[-1] == clip
    assert np.all(np.diff(scale) > 0)


def test_a_shallow_surface_far_above_zero_still_shows_its_shape():
    """Such as that of a network that has hardly been trained: 2.30 to 2.35."""
    shallow = valley()
    shallow["values"] = 2.3 + 0.025 * shallow["values"]
    assert np.sum(levels([shallow]) > 2.3) >= 6


def test_the_region_above_the_clip_is_white():
    drawn = draw_surface(Figure().subplots(), valley(), levels([valley()], clip=0.5))
    assert drawn.get_cmap().get_over().tolist() == [1, 1, 1, 1]
    assert drawn.extend == "max"


def test_surfaces_share_a_scale_that_shows_each_of_them():
    """One that lies wholly above the others' range still has its lowest values on the scale."""
    low, high = valley(), valley()
    high["values"] = high["values"] + 30
    scale = levels([low, high])
    assert scale[0] <= 0 and scale[-1] > 30


def test_what_is_not_finite_is_missing_and_stays_so():
    arrays = valley()
    arrays["values"][30:, :] = np.nan
    arrays["values"][0, 0] = np.inf
    before = arrays["values"].copy()
    figure = Figure()
    ax = figure.subplots()
    drawn = draw_surface(ax, arrays, levels([arrays]))
    rightmost = max(path.vertices[:, 0].max() for path in drawn.get_paths() if len(path.vertices))
    assert rightmost <= arrays["alphas"][29] + 1e-9  # nothing is drawn over the gap
    assert ax.patch.get_hatch()
    np.testing.assert_array_equal(arrays["values"], before)


@pytest.mark.parametrize("filling", [np.nan, np.inf, 0.0, 2.5])
def test_a_surface_without_any_shape_is_drawn(filling: float):
    arrays = valley() | {"values": np.full((41, 23), filling)}
    figure = surface(arrays)
    figure.draw_without_rendering()
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ([] if np.isfinite(filling) else ["no finite loss"])


def test_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(23, 41\).*41 alphas"):
        surface(valley() | {"values": valley()["values"].T})
