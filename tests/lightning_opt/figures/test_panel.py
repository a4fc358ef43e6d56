"""The panel of a method: one column for each learning rate, on one scale."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.contour import QuadContourSet

from lightning_opt.figures import Column, Curve, panel
from lightning_opt.figures.panel import outline_level

AXIS = np.linspace(-1, 1, 21)


def bowl(sharpness: float, bottom: float = 0.0) -> dict[str, np.ndarray]:
    return {
        "alphas": AXIS,
        "betas": AXIS,
        "values": bottom + sharpness * (AXIS[:, None] ** 2 + AXIS**2),
    }


def column(label: str, sharpness: float) -> Column:
    steps = np.arange(1, 30)
    spectrum = {
        "nodes": np.array([[0.0, sharpness]]),
        "weights": np.array([[0.9, 0.1]]),
        "eigenvalues": np.array([sharpness]),
    }
    curve = Curve(steps, 1 / steps, 0.9 / steps, 1.1 / steps)
    return Column(label, curve, bowl(sharpness), spectrum)


def words(figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def filled(figure) -> list[QuadContourSet]:
    sets = [c for ax in figure.axes for c in ax.collections if isinstance(c, QuadContourSet)]
    return [drawn for drawn in sets if drawn.filled]


def test_contours_share_one_scale():
    drawn = filled(panel([column("lr 0.1", 1.0), column("lr 1", 7.0)]))
    assert len(drawn) == 2
    assert drawn[0].levels.tolist() == drawn[1].levels.tolist()


def test_absent_results_say_why():
    columns = [column("lr 0.1", 1.0), Column("lr 1", note="diverged"), Column("lr 10")]
    figure = panel(columns, title="sgd")
    figure.draw_without_rendering()
    assert words(figure).count("diverged") == 2
    assert words(figure).count("no data") == 2


def test_a_panel_without_any_surface_is_drawn():
    panel([Column("lr 1", note="diverged")]).draw_without_rendering()


def test_outlines_are_of_one_level_and_as_wide_as_the_bowls():
    figure = panel([column("lr 0.1", 1.0), column("lr 1", 4.0)])
    overlay = figure.axes[1]
    outlines = [c for c in overlay.collections if isinstance(c, QuadContourSet)]
    (level,) = {float(outline.levels[0]) for outline in outlines}
    radii = [outline.get_paths()[0].vertices[:, 0].max() for outline in outlines]
    assert radii == pytest.approx([np.sqrt(level), np.sqrt(level / 4)], abs=0.02)
    assert f"below {level:g}" in overlay.get_title()


def test_a_surface_above_the_level_is_named():
    high = Column("lr 0.001", surface=bowl(1.0, bottom=2.0))
    figure = panel([column("lr 0.1", 1.0), column("lr 1", 2.0), high])
    assert "nowhere below: lr 0.001" in figure.axes[1].get_xlabel()


def test_the_outlined_level_shows_as_many_surfaces_as_can_be():
    surfaces = [bowl(1.0, 0.1), bowl(1.0, 0.3), bowl(1.0, 0.6)]
    level = outline_level(surfaces, clip=2.0)
    assert level is not None and 0.6 < level < 2
    assert outline_level(surfaces, clip=0.01) is None


@pytest.mark.parametrize("count", [1, 2, 5, 6, 11])
def test_columns_wrap_before_they_become_too_narrow(count: int):
    figure = panel([column(f"lr {k}", 1.0 + k) for k in range(count)])
    figure.draw_without_rendering()
    assert len(filled(figure)) == count
    widths = {round(ax.get_position().width, 2) for ax in figure.axes if ax.get_title()[:2] == "lr"}
    assert min(widths) > 0.1
