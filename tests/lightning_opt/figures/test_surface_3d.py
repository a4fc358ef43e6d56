"""The figure that turns: what it shows and says, and that its page needs no network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_opt.figures import save, surface_3d

ALPHAS, BETAS = np.linspace(-2, 2, 21), np.linspace(-1, 1, 13)


def valley(sharpness: float = 1.0) -> dict[str, np.ndarray]:
    values = sharpness * (ALPHAS[:, None] ** 2 / 4 + BETAS**2) + 0.1 * ALPHAS[:, None]
    return {"alphas": ALPHAS, "betas": BETAS, "values": values}


def named(figure: Any, name: str) -> Any:
    return next(trace for trace in figure.data if trace.name == name)


def test_rows_of_a_trace_run_along_beta():
    bowl = named(surface_3d(valley(), clip=5.0), "loss")
    np.testing.assert_array_equal(bowl.x, ALPHAS)
    np.testing.assert_array_equal(bowl.y, BETAS)
    np.testing.assert_allclose(bowl.z, valley()["values"].T)


def test_a_point_tells_where_it_is_and_what_its_loss_is():
    bowl = named(surface_3d(valley()), "loss")
    assert bowl.text[12][0] == "α -2<br>β 1<br>loss 1.8"
    assert bowl.text[0][20] == "α 2<br>β -1<br>loss 2.2"
    assert "%{text}" in bowl.hovertemplate


def test_the_axis_cuts_the_surface_off_at_the_clip():
    figure = surface_3d(valley(), clip=0.5)
    low, high = figure.layout.scene.zaxis.range
    assert high == 0.5 and low < 0
    assert named(figure, "loss").cmax == 0.5
    assert "to 0.5" in figure.layout.title.subtitle.text


def test_the_floor_shows_the_contours_and_is_white_beyond_the_clip():
    figure = surface_3d(valley(), clip=0.5)
    floor = named(figure, "floor")
    assert np.ptp(floor.z) == 0 and floor.z[0][0] > figure.layout.scene.zaxis.range[0]
    assert floor.colorscale[-1] == (1.0, "#ffffff") and floor.colorscale[0][1] != "#ffffff"
    assert floor.cmax > 0.5  # the rim in white
    edges = sorted({place for place, _ in floor.colorscale})
    assert edges[-2] * (floor.cmax - floor.cmin) + floor.cmin == pytest.approx(0.5)


def test_a_range_leaves_the_floor_white_on_both_sides():
    floor = named(surface_3d(valley(), clip=(0.2, 0.5)), "floor")
    assert floor.colorscale[0] == (0.0, "#ffffff") and floor.cmin < 0.2


def test_the_trained_weights_are_marked_on_the_floor_and_on_the_surface():
    mark = named(surface_3d(valley()), "minimum")
    assert (set(mark.x), set(mark.y)) == ({0.0}, {0.0})
    assert len(mark.z) == 2 and mark.z[1] == pytest.approx(0.0, abs=1e-12)
    high = valley() | {"values": valley()["values"] + 1}
    above = named(surface_3d({"low": valley(), "high": high}, clip=0.5), "minimum")
    assert len(above.z) == 2
    assert len(surface_3d({"low": valley(), "high": high}, clip=0.5).data[-1].z) == 1


def test_the_trajectory_lies_on_the_floor():
    path = np.array([[-1.5, 0.8], [-1.0, 0.1], [0.0, 0.0]])
    drawn = named(surface_3d(valley() | {"trajectory": path}), "trajectory")
    np.testing.assert_array_equal(np.column_stack([drawn.x, drawn.y]), path)


def test_a_slider_shows_one_surface_at_a_time_on_one_scale():
    path = np.zeros((2, 2))
    figure = surface_3d({"lr 0.1": valley(), "lr 1": valley(9.0) | {"trajectory": path}})
    assert [trace.visible for trace in figure.data] == [True] * 3 + [False] * 4
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["lr 0.1", "lr 1"]
    assert [step.args[0]["visible"] for step in slider.steps] == [
        [True] * 3 + [False] * 4,
        [False] * 3 + [True] * 4,
    ]
    scales = {(trace.cmin, trace.cmax) for trace in figure.data if trace.name == "loss"}
    assert len(scales) == 1


def test_the_scale_reaches_every_surface():
    high = valley() | {"values": valley()["values"] + 30}
    for surfaces in ({"low": valley(), "high": high}, {"high": high, "low": valley()}):
        low, top = surface_3d(surfaces).layout.scene.zaxis.range
        assert low < 0 and top > 30


def test_a_single_surface_needs_no_slider():
    assert not surface_3d(valley()).layout.sliders
    assert not surface_3d({"lr 0.1": valley()}).layout.sliders


def test_gaps_are_gaps_and_walls_within_single_precision():
    arrays = valley()
    arrays["values"][:3, 0] = np.nan, np.inf, 1e30
    bowl = named(surface_3d(arrays), "loss")
    assert np.isnan(bowl.z[0][:2]).all()
    assert bowl.z[0][2] < 100


def test_walls_are_drawn_by_the_logarithm_and_pointed_at_as_they_are():
    values = 10 ** (18 * (ALPHAS[:, None] ** 2 / 4 + BETAS**2) - 6)
    figure = surface_3d(valley() | {"values": values})
    bowl = named(figure, "loss")
    assert bowl.z[6][10] == pytest.approx(-6)
    assert bowl.text[6][10].endswith("loss 1e-6")
    assert figure.layout.scene.zaxis.ticktext[0] == "1e-6"


@pytest.mark.parametrize("filling", [np.nan, 0.0, 2.5, -1.0])
def test_a_surface_without_any_shape_is_drawn(filling: float):
    surface_3d(valley() | {"values": np.full((21, 13), filling)}).to_json()


def test_no_surface_is_refused():
    with pytest.raises(ValueError, match="no surface"):
        surface_3d({})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    several = {"lr 0.1": valley(), "lr 1": valley(9.0)}
    path = tmp_path_factory.mktemp("page") / "surface.html"
    return save(surface_3d(several, title="SGD & <friends>"), path)


def test_the_page_loads_nothing(page: Path):
    text = page.read_text(encoding="utf-8")
    tags = re.findall(
        r"<(?:script|link|img|iframe)\b[^>]*>",
        re.sub(r"(?s)(<script[^>]*>).*?</script>", r"\1", text),
    )
    assert tags and not any(re.search(r"(src|href)=.(?!data:)", tag) for tag in tags)
    assert "<title>SGD &amp; &lt;friends&gt;</title>" in text
    assert "cdn.plot.ly" not in re.sub(r"(?s)<script[^>]*>.*?</script>", "", text)


def test_equal_figures_are_equal_pages(page: Path, tmp_path: Path):
    several = {"lr 0.1": valley(), "lr 1": valley(9.0)}
    again = save(surface_3d(several, title="SGD & <friends>"), tmp_path / "again.html")
    assert again.read_bytes() == page.read_bytes()


READY = "return !!document.getElementById('figure')?._fullLayout?.scene?._scene"
POINT = """
const done = arguments[0], figure = document.getElementById('figure');
const box = figure.getBoundingClientRect(), found = new Set();
const at = { clientX: box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
figure.on('plotly_hover', event => found.add(event.points[0].text));
const target = document.elementFromPoint(at.clientX, at.clientY);
let tries = 0;
(function move() {
    at.clientX += tries % 2 ? 1 : -1;
    target.dispatchEvent(new MouseEvent('mousemove', at));
    if (found.size || tries++ > 60) return done([...found]);
    setTimeout(move, 100);
})();
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_in_a_browser(browser: Any, page: Path, width: int):
    from selenium.webdriver.support.wait import WebDriverWait

    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get(page.as_uri())
    WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(READY))
    if width == 1280:
        (said,) = browser.execute_async_script(POINT)
        assert re.fullmatch(r"α \S+<br>β \S+<br>loss \S+", said)
    # plotly.js reads its own canvases back, of which chromium would have been told.
    hints = ("willReadFrequently", "GPU stall due to ReadPixels")
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert [text for text in complaints if not any(hint in text for hint in hints)] == []
    loaded = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert browser.execute_script(loaded) == []
    size = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert size == [width, width]
