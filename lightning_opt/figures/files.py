"""Saving a figure: whole or not at all, and the same bytes each time."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from lightning_opt.errors import UsageError
from lightning_opt.files import replacing

from .style import styled

# What is left out is the date and the program's version: equal figures are equal files.
METADATA = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}


def save(figure: Figure, path: str | Path, *, dpi: int = 160) -> Path:
    """Saves a figure as PNG or SVG, by the ending of ``path``, atomically.

    Args:
        dpi: pixels per inch of a PNG.

    Returns:
        The path.

    Raises:
        UsageError: the ending is neither ``.png`` nor ``.svg``.

    >>> import tempfile
    >>> save(Figure(), Path(tempfile.mkdtemp()) / "empty.svg").name
    'empty.svg'
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in METADATA:
        raise UsageError(f"A figure is saved as .png or .svg, not as {path.name}.")
    with replacing(path) as temporary, styled():
        figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=METADATA[suffix])
    return path
