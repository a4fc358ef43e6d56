"""From a study's directory to the page and its files."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from lightning_opt.errors import UsageError
from lightning_opt.figures import save
from lightning_opt.files import write_text

from .drawings import Drawing, overview, panels
from .page import Picture, Section, picture, render
from .records import Study, read_study
from .statistics import results
from .tables import every_run, grids, incomplete, machines, sensitivities, summary


def write(directory: Path) -> Path:
    """Writes everything; see :func:`lightning_opt.report.write_report`."""
    study = read_study(directory)
    check_places(directory)
    sections = [write_section(directory, study, task) for task in study.tasks]
    tables = [grids(study), incomplete(study), machines(study)]
    for table in tables:
        write_csv(directory, table.name, table.frame)
    write_csv(directory, "runs", every_run(study))
    page = directory / "report.html"
    write_text(page, render(study, sections, *tables))
    return page


def check_places(directory: Path) -> None:
    """Raises a UsageError where something else is in the way of what is to be written."""
    for name, is_folder in (("figures", True), ("tables", True), ("report.html", False)):
        path = directory / name
        if path.exists() and path.is_dir() != is_folder:
            kind = "a file, not a folder" if is_folder else "a folder, not a file"
            raise UsageError(f"{path} is {kind}: move it away for the report to be written.")


def write_section(directory: Path, study: Study, task: str) -> Section:
    """Writes a task's tables and figures, and returns what the page says of it."""
    found = results(study, task)
    section = Section(
        task=task,
        description=study.tasks[task],
        results=found,
        summary=summary(study, task, found),
        sensitivities=sensitivities(study, task, found),
        overview=[write_figure(directory, drawing) for drawing in overview(study, task, found)],
        panels=[write_figure(directory, drawing) for drawing in panels(study, found)],
    )
    for table in (section.summary, section.sensitivities):
        write_csv(directory, table.name, table.frame)
    return section


def write_figure(directory: Path, drawing: Drawing) -> Picture:
    """Writes a figure as PNG and SVG."""
    stem = directory / "figures" / file_name(drawing.name)
    png = save(drawing.figure, f"{stem}.png")
    drawing.figure.set_layout_engine("none")  # laid out by now, and that is half of the time
    svg = save(drawing.figure, f"{stem}.svg")
    return picture(drawing, svg, png)


def write_csv(directory: Path, name: str, frame: pd.DataFrame) -> None:
    """Writes a table."""
    write_text(directory / "tables" / f"{file_name(name)}.csv", frame.to_csv(index=False))


def file_name(name: str) -> str:
    """A name that is one file's on every system.

    >>> file_name("digits-Adam (β=0.9)")
    'digits-Adam_0.9_'
    """
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name)
