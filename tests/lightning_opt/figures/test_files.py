"""Saving a figure, and what importing the figures brings along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from lightning_opt.errors import UsageError
from lightning_opt.figures import save, surface, surface_3d

AXIS = np.linspace(-1, 1, 9)


def figure() -> Figure:
    return surface({"alphas": AXIS, "betas": AXIS, "values": AXIS[:, None] ** 2 + AXIS**2})


@pytest.mark.parametrize(
    ("suffix", "start"),
    [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PNG", b"\x89PNG"), (".pdf", b"%PDF")],
)
def test_the_ending_says_the_format(tmp_path: Path, suffix: str, start: bytes):
    path = save(figure(), tmp_path / f"surface{suffix}")
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".pdf", ".png", ".svg"])
def test_equal_figures_are_equal_files(tmp_path: Path, suffix: str):
    """No date, no random ids: a report can be compared with the last one."""
    one, two = (save(figure(), tmp_path / f"{name}{suffix}") for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert b"Date" not in one.read_bytes()  # within one second dates would be equal too


def test_a_failure_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "surface.svg"
    path.write_text("old")

    def half(self: Figure, target: Path, **_: object) -> None:
        Path(target).write_text("ha")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        save(figure(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".bmp", ".html", ""])
def test_another_ending_is_refused(tmp_path: Path, suffix: str):
    with pytest.raises(UsageError, match=rf"\.pdf or \.png or \.svg, not as surface{suffix}"):
        save(figure(), tmp_path / f"surface{suffix}")


def test_an_interactive_figure_is_a_page_only(tmp_path: Path):
    turning = surface_3d({"alphas": AXIS, "betas": AXIS, "values": AXIS[:, None] ** 2 + AXIS**2})
    with pytest.raises(UsageError, match=r"\.html, not as surface\.png"):
        save(turning, tmp_path / "surface.png")
    path = save(turning, tmp_path / "surface.html")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [path]


def test_neither_torch_nor_pyplot_nor_plotly_is_imported():
    """The report must be quick, and pyplot would look for a display."""
    code = (
        "import sys, lightning_opt.figures; "
        "assert not {'torch', 'matplotlib.pyplot', 'plotly', 'pytorch_lightning'} "
        "& set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
