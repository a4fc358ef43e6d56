"""The scale of contours: round, clipped, shared, and logarithmic where it has to be."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_opt.figures.levels import is_logarithmic, levels


def valley() -> dict[str, np.ndarray]:
    """a²/4 + b²."""
    alphas, betas = np.linspace(-2, 2, 41), np.linspace(-1, 1, 23)
    return {"alphas": alphas, "betas": betas, "values": alphas[:, None] ** 2 / 4 + betas**2}


def having(values: np.ndarray) -> dict[str, np.ndarray]:
    return valley() | {"values": values}


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


def test_surfaces_share_a_scale_that_shows_each_of_them():
    """One that lies wholly above the others' range still has its lowest values on the scale."""
    low, high = valley(), valley()
    high["values"] = high["values"] + 30
    scale = levels([low, high])
    assert scale[0] <= 0 and scale[-1] > 30


@pytest.mark.parametrize("clip", [(0.5, 1.5), (0.01, 1.0), (0.123, 0.456)])
def test_the_scale_begins_and_ends_at_a_range(clip: tuple[float, float]):
    scale = levels([valley()], clip=clip)
    assert (scale[0], scale[-1]) == clip
    assert np.all(np.diff(scale) > 0)
    assert not is_logarithmic(scale)


@pytest.mark.parametrize("clip", [np.nan, np.inf, (1.0, 1.0), (2.0, 1.0), (0.0, np.inf)])
def test_what_is_no_range_is_refused(clip: object):
    with pytest.raises(ValueError, match="clip is"):
        levels([valley()], clip=clip)


def test_a_metric_is_shown_up_to_its_highest_value():
    arrays = valley() | {"metric_accuracy": 1 - valley()["values"] / 4}
    assert levels([arrays], of="accuracy")[-1] == pytest.approx(1.0)


def test_half_of_a_plane_lies_below_the_clip():
    assert np.mean(valley()["values"] <= levels([valley()])[-1]) == pytest.approx(0.5, abs=0.05)


def test_walls_make_the_scale_logarithmic():
    scale = levels([having(10 ** (15 * valley()["values"] - 6))])
    assert is_logarithmic(scale)
    assert scale[0] == pytest.approx(1e-6) and 6 < len(scale) < 20
    assert not is_logarithmic(levels([valley()]))


@pytest.mark.parametrize("values", [2.5, 0.0, -1.0])
def test_what_differs_by_rounding_is_flat(values: float):
    """Contours of the noise of float32 would look like a landscape."""
    noise = 1e-7 * np.random.default_rng(0).standard_normal((41, 23))
    scale = levels([having(values * (1 + noise))])
    assert np.ptp(scale) >= 1


def test_what_is_not_finite_does_not_count():
    values = valley()["values"]
    values[0, :3] = np.nan, np.inf, -np.inf
    np.testing.assert_allclose(levels([having(values)]), levels([valley()]))
