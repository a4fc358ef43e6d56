"""The relief for paper: cut at the clip, its contours below."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_opt.figures import relief
from lightning_opt.figures.heights import Heights, bilinear
from lightning_opt.figures.relief import cut

ALPHAS, BETAS = np.linspace(-2, 2, 21), np.linspace(-1, 1, 13)
VALLEY = {
    "alphas": ALPHAS,
    "betas": BETAS,
    "values": ALPHAS[:, None] ** 2 / 4 + BETAS**2,
}


def test_the_cut_lies_at_the_clip():
    """What is far above is gone, and what is left ends at the clip itself."""
    heights = Heights(np.array([0.0, 0.5, 1.0]))
    slope = np.repeat(np.linspace(-1, 3, 9)[:, None], 9, axis=1)  # steps of 0.5
    left = cut(slope, heights)[:, 4]
    assert left.tolist()[1:6] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert np.isnan(left[[0, 6, 7, 8]]).all()


def test_the_axes_end_at_the_clip_and_leave_room_below():
    ax = relief(VALLEY, clip=0.5).axes[0]
    assert ax.get_zlim()[1] == 0.5 and ax.get_zlim()[0] < 0
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 2), (-1, 1))
    assert [ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()] == ["α", "β", "loss"]
    assert next(text.get_text() for text in ax.get_zticklabels()) == "0"


def test_walls_are_drawn_by_the_logarithm():
    ax = relief(VALLEY | {"values": 10 ** (18 * VALLEY["values"] - 6)}).axes[0]
    assert ax.get_zlim()[1] < 40
    assert next(text.get_text() for text in ax.get_zticklabels()) == "1e-6"


def test_the_trained_weights_and_the_path_are_marked_on_the_floor():
    path = np.array([[-1.5, 0.8], [0.0, 0.0]])
    ax = relief(VALLEY | {"trajectory": path}).axes[0]
    found = {line.get_gid(): np.array(line.get_data_3d()) for line in ax.lines}
    floor = Heights(np.array([0.0, 1.0]))
    assert found["minimum"][:2].ravel().tolist() == [0, 0]
    np.testing.assert_array_equal(found["trajectory"][:2], path.T)
    assert found["trajectory"][2].tolist() == [ax.get_zlim()[0]] * 2 and floor.floor < 0


def test_between_the_points_it_is_bilinear_the_right_way_round():
    values = 1 + ALPHAS[:, None] - 3 * BETAS + 2 * ALPHAS[:, None] * BETAS
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 50))
    found = bilinear(ALPHAS, BETAS, values, a, b)
    np.testing.assert_allclose(found, 1 + a - 3 * b + 2 * a * b, atol=1e-12)


@pytest.mark.parametrize("filling", [np.nan, np.inf, 0.0, 2.5, -1.0])
def test_a_surface_without_any_shape_is_drawn(filling: float):
    figure = relief(VALLEY | {"values": np.full((21, 13), filling)})
    figure.draw_without_rendering()
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ([] if np.isfinite(filling) else ["no finite loss"])
