"""The overlay that outlines where each surface is low."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from lightning_opt.figures import outlines
from lightning_opt.figures.outlines import outline_level

ALPHAS, BETAS = np.linspace(-1, 1, 41), np.linspace(-0.8, 1, 31)


def bowl(sharpness: float, bottom: float = 0.0) -> dict[str, np.ndarray]:
    return {
        "alphas": ALPHAS,
        "betas": BETAS,
        "values": bottom + sharpness * (ALPHAS[:, None] ** 2 + 2 * BETAS**2),
    }


def drawn(figure: Figure) -> list[QuadContourSet]:
    return [c for c in figure.axes[0].collections if isinstance(c, QuadContourSet)]


def test_each_outline_is_at_the_level_and_the_right_way_round():
    """s·(a² + 2b²) = 0.5: half-axes √(0.5/s) along α, to the right, and √(0.25/s) along β."""
    figure = outlines({"lr 0.1": bowl(1.0), "lr 1": bowl(4.0)}, level=0.5)
    for outline, sharpness in zip(drawn(figure), (1.0, 4.0), strict=True):
        x, y = outline.get_paths()[0].vertices.T
        assert x.max() == pytest.approx(np.sqrt(0.5 / sharpness), abs=0.01)
        assert y.max() == pytest.approx(np.sqrt(0.25 / sharpness), abs=0.01)
    assert figure.axes[0].get_title() == "region where the loss is below 0.5"


def test_the_legend_tells_which_outline_is_whose():
    figure = outlines({"lr 0.1": bowl(1.0), "lr 1": bowl(4.0), "lr 10": bowl(9.0)}, level=0.5)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["lr 0.1", "lr 1", "lr 10"]
    shown = [to_hex(line.get_color()) for line in legend.get_lines()]
    assert shown == [to_hex(outline.get_edgecolor()[0]) for outline in drawn(figure)]
    assert len(set(shown)) == 3


def test_surfaces_without_an_outline_are_named():
    surfaces = {
        "shown": bowl(1.0),
        "high": bowl(1.0, bottom=2.0),
        "low": bowl(0.01),
        "lost": bowl(np.nan),
    }
    figure = outlines(surfaces, level=0.5)
    assert len(drawn(figure)) == 1
    said = figure.axes[0].get_xlabel().splitlines()
    assert said == ["α", "nowhere below: high", "everywhere below: low", "no finite loss: lost"]


def test_the_axes_hold_every_plane_whole():
    """Also that of a surface that has no outline."""
    wide = bowl(1.0, bottom=2.0) | {"alphas": 3 * ALPHAS}
    ax = outlines({"a": bowl(1.0), "b": wide}, level=0.5).axes[0]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-3, 3), (-0.8, 1))


def test_the_level_leaves_about_a_quarter_of_the_plane_below():
    level = outline_level([bowl(1.0)])
    assert level is not None
    assert np.mean(bowl(1.0)["values"] < level) == pytest.approx(0.25, abs=0.1)


def test_the_level_shows_as_many_surfaces_as_can_be():
    level = outline_level([bowl(1.0, 0.1), bowl(1.0, 0.3), bowl(1.0, 0.6)])
    assert level in (1.0, 2.0)


@pytest.mark.parametrize("bottom", [2.3, -5.0])
def test_a_level_is_found_where_powers_of_ten_are_of_no_use(bottom: float):
    surfaces = [bowl(0.02, bottom), bowl(0.03, bottom)]
    level = outline_level(surfaces)
    assert level is not None and bottom < level < bottom + 0.06


@pytest.mark.parametrize("surfaces", [{}, {"lost": bowl(np.nan)}, {"flat": bowl(0.0)}])
def test_without_any_outline_that_is_said(surfaces: dict):
    figure = outlines(surfaces)
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.axes[0].texts] == ["no data"]
