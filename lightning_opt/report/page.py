"""The page, from tables and figures: one file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from .drawings import Drawing
from .records import Status, Study
from .statistics import Result, overlapping
from .tables import Table
from .words import listed, metric_name, plural, point_name, spread

SVG_LIMIT = 300_000  # bytes: above, a figure is embedded as PNG
STATUSES: tuple[Status, ...] = ("finished", "diverged", "failed", "missing", "unreadable")


@dataclass(frozen=True)
class Picture:
    """A figure as the page embeds it."""

    drawing: Drawing
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Section:
    """The page's part on one task."""

    task: str
    description: str
    results: Sequence[Result]
    summary: Table
    sensitivities: Table
    overview: Sequence[Picture]
    panels: Sequence[Picture]


def picture(drawing: Drawing, svg: Path, png: Path) -> Picture:
    """Embeds a figure from its files: as SVG, or as PNG where that is the lighter choice."""
    width, height = (round(inches * 96) for inches in drawing.figure.get_size_inches())
    if svg.stat().st_size <= SVG_LIMIT:
        return Picture(drawing, data_uri("image/svg+xml", svg.read_bytes()), width, height)
    return Picture(drawing, data_uri("image/png", png.read_bytes()), width, height)


def data_uri(kind: str, content: bytes) -> str:
    """A file's content as an address.

    >>> data_uri("image/png", b"abc")
    'data:image/png;base64,YWJj'
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def render(
    study: Study, sections: Sequence[Section], grids: Table, incomplete: Table, machines: Table
) -> str:
    """The whole page as HTML."""
    folder = files(__package__)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(metric_name=metric_name, listed=listed, plural=plural)
    template = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8"))
    counts = {status: sum(run.status == status for run in study.runs) for status in STATUSES}
    return template.render(
        study=study,
        sections=sections,
        verdicts=[verdict(study, section) for section in sections],
        counts=counts,
        grids=grids,
        incomplete=incomplete,
        machines=machines,
        example=example(sections),
        style=(folder / "page.css").read_text(encoding="utf-8"),
    )


def verdict(study: Study, section: Section) -> dict[str, Any]:
    """What a task's table says, in two sentences."""
    results = [result for result in section.results if result.test.count]
    if not results:
        return {"task": section.task, "best": None, "overlap": ""}
    best = results[0]
    return {
        "task": section.task,
        "best": best.optimizer,
        "rate": point_name(best.chosen or ()),
        "value": spread(best.test, study.test_metric),
        "overlap": overlap(results),
    }


def overlap(results: Sequence[Result]) -> str:
    """Which methods the intervals do not tell from the best, in a sentence."""
    best, others = results[0], results[1:]
    if best.test.count < 2:
        return "With a single seed there is no interval, so differences may be chance."
    if not others:
        return ""
    close = [result.optimizer for result in overlapping(results)]
    if not close:
        return f"No other method's 95 % interval overlaps that of {best.optimizer}."
    if len(close) == len(others):
        return (
            f"The 95 % interval of every other method overlaps that of {best.optimizer}: "
            "these runs do not settle which is best."
        )
    return (
        f"The 95 % {'intervals' if len(close) > 1 else 'interval'} of {listed(close)} "
        f"{'overlap' if len(close) > 1 else 'overlaps'} that of {best.optimizer}: "
        "these runs do not settle which of them is best."
    )


def example(sections: Sequence[Section]) -> str:
    """The directory of a run to repeat: the best method's first."""
    runs = [run for section in sections for result in section.results for run in result.finished]
    return runs[0].cell.directory if runs else "cells/NAME"
