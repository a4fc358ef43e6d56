"""Contours: the right way round, on the right scale, and honest about what is missing."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_opt.figures import surface
from lightning_opt.figures.heights import bilinear
from lightning_opt.figures.levels import levels
from lightning_opt.figures.surface import draw_surface


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
    drawn = draw_surface(ax, valley(), np.array([0.0, 0.25])).filled
    x, y = drawn.get_paths()[0].vertices.T
    assert (x.min(), x.max()) == pytest.approx((-1, 1), abs=0.01)
    assert (y.min(), y.max()) == pytest.approx((-0.5, 0.5), abs=0.01)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 2), (-1, 1))


def test_a_slope_falls_where_the_values_do():
    """Mirrored axes would pass with a symmetric bowl; 5 + a + 2b < 3 is one corner."""
    alphas, betas = np.linspace(-1, 1, 5), np.linspace(-1, 1, 7)
    slope = {"alphas": alphas, "betas": betas, "values": 5 + alphas[:, None] + 2 * betas}
    drawn = draw_surface(Figure().subplots(), slope, np.array([0.0, 3.0])).filled
    x, y = drawn.get_paths()[0].vertices.T
    assert (x.min(), x.max()) == pytest.approx((-1, 0))
    assert (y.min(), y.max()) == pytest.approx((-1, -0.5))


def test_the_minimum_is_marked_at_the_trained_weights():
    (mark,) = [line for line in surface(valley()).axes[0].lines if line.get_gid() == "minimum"]
    assert mark.get_xydata().tolist() == [[0, 0]]


def pixels(figure: Figure) -> np.ndarray:
    """The drawn figure, with row 0 at the bottom, as display coordinates count."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[::-1, :, :3]


def color_at(figure: Figure, alpha: float, beta: float) -> tuple[int, ...]:
    image = pixels(figure)
    x, y = figure.axes[0].transData.transform((alpha, beta)).astype(int)
    return tuple(int(channel) for channel in image[y, x])


WHITE = (255, 255, 255)


def test_the_region_above_the_clip_is_white():
    """a²/4 + b² at b = 0: 0.36 at a = 1.2, and 0.81 at a = 1.8."""
    figure = surface(valley(), clip=0.5)
    assert color_at(figure, 1.8, 0.05) == WHITE
    assert color_at(figure, 1.2, 0.05) != WHITE
    assert "white: above 0.5" in figure.axes[1].get_ylabel()


def test_a_range_leaves_both_sides_white():
    figure = surface(valley(), clip=(0.2, 0.5))
    seen = [color_at(figure, alpha, 0.05) == WHITE for alpha in (0.4, 1.2, 1.8)]
    assert seen == [True, False, True]
    assert "white: outside 0.2 to 0.5" in figure.axes[1].get_ylabel()


def test_nothing_is_said_of_white_where_there_is_none():
    assert surface(valley(), clip=5.0).axes[1].get_ylabel() == "loss"


def labels(figure: Figure) -> list[Text]:
    return [text for text in figure.axes[0].texts if text.get_text()]


@pytest.mark.parametrize("scale", [1.0, 1e-5, 300.0])
def test_level_labels_tell_the_loss_where_they_stand(scale: float):
    arrays = valley()
    arrays["values"] = scale * arrays["values"]
    figure = surface(arrays)
    figure.draw_without_rendering()
    found = labels(figure)
    assert 3 <= len(found) <= 5
    for label in found:
        a, b = (np.array([place]) for place in label.get_position())
        (loss,) = bilinear(arrays["alphas"], arrays["betas"], arrays["values"], a, b)
        assert float(label.get_text()) == pytest.approx(loss, rel=0.12)


def slope() -> dict[str, np.ndarray]:
    """Its contours run from edge to edge, and would have the most room at the corners."""
    return valley() | {"values": np.repeat(2 + valley()["alphas"][:, None], 23, axis=1)}


@pytest.mark.parametrize("arrays", [valley(), slope()], ids=["valley", "slope"])
def test_level_labels_lie_inside_and_apart(arrays: dict[str, np.ndarray]):
    figure = surface(arrays)
    pixels(figure)
    inside = figure.axes[0].bbox
    boxes = [label.get_window_extent() for label in labels(figure)]
    assert len(boxes) >= 3
    for place, box in enumerate(boxes):
        assert all(inside.contains(*corner) for corner in box.corners())
        assert not any(box.overlaps(other) for other in boxes[:place])


def test_level_labels_keep_off_the_trajectory():
    """One that runs right through where the labels would be without it."""
    path = np.array([label.get_position() for label in labels(surface(valley()))])
    figure = surface(valley() | {"trajectory": path})
    pixels(figure)
    places = figure.axes[0].transData.transform(path)
    for label in labels(figure):
        box = label.get_window_extent()
        assert not any(box.contains(*place) for place in places)


def test_the_trajectory_is_drawn_from_an_open_circle_to_its_end():
    path = np.array([[-1.5, 0.8], [-1.0, 0.1], [0.0, 0.0]])
    lines = surface(valley() | {"trajectory": path}).axes[0].lines
    (drawn,) = [line for line in lines if line.get_gid() == "trajectory"]
    np.testing.assert_array_equal(drawn.get_xydata(), path)
    (circle,) = [line for line in lines if line.get_markerfacecolor() == "white"]
    assert circle.get_xydata().tolist() == [[-1.5, 0.8]]


def test_a_trajectory_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        surface(valley() | {"trajectory": np.zeros((2, 3))})


def test_a_metric_is_drawn_instead_and_as_a_whole():
    accuracy = 1 - valley()["values"] / 4
    figure = surface(valley() | {"metric_accuracy": accuracy}, of="accuracy")
    assert figure.axes[1].get_ylabel() == "accuracy"
    assert color_at(figure, 1.9, 0.95) != WHITE
    assert color_at(figure, 1.9, 0.95) != color_at(figure, 0.2, 0.05)


def test_an_unknown_metric_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="one of loss, accuracy"):
        surface(valley() | {"metric_accuracy": valley()["values"]}, of="f1")


def test_how_many_points_were_evaluated_is_said():
    some = np.zeros((41, 23), dtype=bool)
    some[::2, ::2] = True
    assert "252 of 943 points" in surface(valley() | {"evaluated": some}).axes[0].get_xlabel()
    whole = valley() | {"evaluated": np.ones((41, 23), dtype=bool)}
    assert surface(whole).axes[0].get_xlabel() == "first direction α"


def test_a_value_without_neighbors_is_a_dot():
    values = np.full((41, 23), np.nan)
    values[30, 5] = 1.0
    figure = surface(valley() | {"values": values})
    (dots,) = [c for c in figure.axes[0].collections if c.get_gid() == "lone"]
    expected = (valley()["alphas"][30], valley()["betas"][5])
    assert np.asarray(dots.get_offsets())[0] == pytest.approx(expected)


def test_walls_of_extreme_loss_leave_the_shape_visible():
    """Contours at powers of ten, and between them interpolated by the logarithm: a round bowl's
    contour of 10^(36 r² - 6) = 1 lies at r² = 1/6 although the next point may be 1e3."""
    axis = np.linspace(-1, 1, 21)
    bowl = {
        "alphas": axis,
        "betas": axis,
        "values": 10 ** (18 * (axis[:, None] ** 2 + axis**2) - 6),
    }
    contours = draw_surface(Figure().subplots(), bowl, levels([bowl]))
    (outline,) = contours.lines.allsegs[list(contours.lines.levels).index(0)]
    assert np.linalg.norm(outline, axis=1) == pytest.approx(np.sqrt(1 / 3), rel=0.02)


@pytest.mark.parametrize("values", [-7.0, 1e15, 1e-30], ids=["negative", "large", "small"])
def test_shapes_survive_any_offset_and_unit(values: float):
    arrays = valley() | {"values": values + abs(values) * valley()["values"]}
    figure = surface(arrays)
    assert len({color_at(figure, alpha, 0.05) for alpha in (0.1, 0.9, 1.9)}) == 3


def test_what_is_not_finite_is_missing_and_stays_so():
    arrays = valley()
    arrays["values"][30:, :] = np.nan
    arrays["values"][0, 0] = np.inf
    before = arrays["values"].copy()
    figure = Figure()
    ax = figure.subplots()
    drawn = draw_surface(ax, arrays, levels([arrays])).filled
    rightmost = max(path.vertices[:, 0].max() for path in drawn.get_paths() if len(path.vertices))
    assert rightmost <= arrays["alphas"][29] + 1e-9  # nothing is drawn over the gap
    assert ax.patch.get_hatch()
    np.testing.assert_array_equal(arrays["values"], before)


@pytest.mark.parametrize("filling", [np.nan, np.inf, 1e300, 0.0, 2.5])
def test_a_surface_without_any_shape_is_drawn(filling: float):
    arrays = valley() | {"values": np.full((41, 23), filling)}
    figure = surface(arrays)
    figure.draw_without_rendering()
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ([] if filling < 3 else ["no finite loss"])


def test_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(23, 41\).*41 alphas"):
        surface(valley() | {"values": valley()["values"].T})
