"""Saving a figure: whole or not at all, and the same bytes each time."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from lightning_opt.errors import UsageError
from lightning_opt.files import replacing, write_text

from .style import styled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as InteractiveFigure

# What is left out is the date and the program's version: equal figures are equal files.
METADATA = {
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
}


def save(figure: Figure | InteractiveFigure, path: str | Path, *, dpi: int = 160) -> Path:
    """Saves a figure atomically, in the format that the ending of ``path`` names.

    That is PDF, PNG or SVG. A figure of :func:`~lightning_opt.figures.surface_3d` is saved as
    ``.html``: one page that holds all it needs, plotly.js included, and opens without a network.

    Args:
        dpi: pixels per inch of a PNG.

    Returns:
        The path.

    Raises:
        UsageError: another ending.

    >>> import tempfile
    >>> save(Figure(), Path(tempfile.mkdtemp()) / "empty.svg").name
    'empty.svg'
    """
    path = Path(path)
    suffix = path.suffix.lower()
    known = list(METADATA) if isinstance(figure, Figure) else [".html"]
    if suffix not in known:
        raise UsageError(f"This figure is saved as {' or '.join(known)}, not as {path.name}.")
    if isinstance(figure, Figure):
        with replacing(path) as temporary, styled():
            figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=METADATA[suffix])
    else:
        write_text(path, page(figure))
    return path


def page(figure: InteractiveFigure) -> str:
    """An HTML page that shows nothing but the figure, as large as the window."""
    content = figure.to_html(
        full_html=False,
        include_plotlyjs=True,
        div_id="figure",  # otherwise a random one
        default_height="min(100vh, 120vw)",  # taller, a telephone would show the middle only
        config={
            "displaylogo": False,  # it links to another site
            "modeBarButtons": [["toImage", "resetCameraDefault3d"]],
            "responsive": True,
        },
    )
    title = escape((figure.layout.title.text or "").strip() or "Loss surface")
    return PAGE.format(title=title, content=content)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>body {{ margin: 0; }}</style>
</head>
<body>
{content}
</body>
</html>
"""
