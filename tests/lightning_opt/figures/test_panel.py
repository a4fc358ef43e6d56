"""The panel of a method: one column for each learning rate, on one scale."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.contour import QuadContourSet

from lightning_opt.figures import Column, Curve, panel

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


def test_the_outlines_are_those_of_the_surfaces():
    high = Column("lr 0.001", surface=bowl(1.0, bottom=2.0))
    overlay = panel([column("lr 0.1", 1.0), column("lr 1", 4.0), high]).axes[1]
    outlines = [c for c in overlay.collections if isinstance(c, QuadContourSet)]
    assert len(outlines) == 2 and len({float(outline.levels[0]) for outline in outlines}) == 1
    assert "nowhere below: lr 0.001" in overlay.get_xlabel()


def test_densities_share_one_axis_of_eigenvalues():
    figure = panel([column("lr 0.1", 1.0), column("lr 1", 7.0)])
    below = [ax for ax in figure.axes if ax.get_xlabel() == "eigenvalue λ"]
    assert len(below) == 2
    assert below[0].get_xlim() == below[1].get_xlim()
    assert below[0].get_xlim()[1] > 7


def test_contours_carry_their_levels():
    figure = panel([column("lr 0.1", 1.0), column("lr 1", 7.0)])
    tops = [ax for ax in figure.axes if ax.get_title().startswith("lr")]
    assert all(1 <= len(ax.texts) <= 3 for ax in tops)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 11])
def test_columns_wrap_before_they_become_too_narrow(count: int):
    figure = panel([column(f"lr {k}", 1.0 + k) for k in range(count)])
    figure.draw_without_rendering()
    assert len(filled(figure)) == count
    widths = {round(ax.get_position().width, 2) for ax in figure.axes if ax.get_title()[:2] == "lr"}
    assert min(widths) > 0.1
