"""The page in a browser: nothing in the console, every figure decoded, nothing cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_is_shown_without_a_complaint(browser: Any, reported_study: Path, width: int):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get((reported_study / "report.html").as_uri())
    assert browser.get_log("browser") == []
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 5 and min(widths) > 600
    # Wide things scroll in their own boxes; the page itself does not.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
