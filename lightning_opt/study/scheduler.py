"""From the command to the page: opens the study's directory, runs what is missing, reports."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout
from tqdm import tqdm

from lightning_opt.errors import UsageError
from lightning_opt.files import write_json

from . import local
from .grid import Cell, Study, load_study
from .records import hardware, read_status

MANIFEST = "study.json"


def run_study(name_or_file: str, out: Path | None = None, workers: int | None = None) -> int:
    """Runs a study, or what is left of it, and writes its report.

    Args:
        name_or_file: A shipped study's name or the path of a study file.
        out: The study's directory; ``runs/NAME`` if left out.
        workers: Runs at once; one per core if left out.

    Returns:
        The exit code: 1 if a run failed, else 0. A diverged run is a result, not a failure.

    Raises:
        UsageError: the study, the directory, or a run directory in it cannot be used; nothing was
            run and nothing changed.
    """
    study = load_study(name_or_file)
    out = Path("runs") / study.name if out is None else out
    cores = int(hardware()["cores"])
    workers = cores if workers is None else workers
    if workers < 1:
        raise UsageError(f"--workers is a number of at least 1, got {workers}.")
    _check_owner(out, study)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            counts = _run_missing(study, out, workers, threads=max(1, cores // workers))
    except Timeout:
        raise UsageError(
            f"Another process is running the study in {out}. Wait for it, or choose another --out."
        ) from None
    return _report(study, out, counts)


def _check_owner(out: Path, study: Study) -> None:
    """Refuses a directory that is not this study's, before anything is written."""
    way_out = "Choose another directory with --out."
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, not a directory. {way_out}")
    if not out.exists() or not any(entry.name != ".lock" for entry in out.iterdir()):
        return
    manifest = out / MANIFEST
    try:
        owner = json.loads(manifest.read_text(encoding="utf-8"))["name"]
    except FileNotFoundError:
        raise UsageError(
            f"{out} holds something else: it is not empty and has no {MANIFEST}. {way_out}"
        ) from None
    except (OSError, ValueError, TypeError, KeyError):
        raise UsageError(
            f"{manifest} cannot be read as a study's manifest (truncated, or foreign). {way_out} "
            f"If the runs in {out} are this study's, replace that file by one of the content "
            f'{{"name": "{study.name}"}}.'
        ) from None
    if owner != study.name:
        raise UsageError(f"{out} belongs to the study {owner!r}, not {study.name!r}. {way_out}")


def _run_missing(study: Study, out: Path, workers: int, threads: int) -> Counter[str]:
    cells = study.cells()
    statuses = {cell.hash: read_status(out / cell.directory, cell) for cell in cells}
    # What failed is run again: whoever starts the study once more has mended something.
    missing = [cell for cell in cells if statuses[cell.hash] in (None, "failed")]
    if missing:
        print(
            f"{study.name}: {len(missing)} of {len(cells)} runs to do in {out}, {workers} at a "
            "time. Importing torch and Lightning takes some seconds, once.",
            file=sys.stderr,
        )
        local.check(_one_of_each(missing))
    write_json(out / MANIFEST, study.manifest())
    counts: Counter[str] = Counter(
        status for status in statuses.values() if status and status != "failed"
    )
    for cell in missing:
        (out / cell.directory / "record.json").unlink(missing_ok=True)
    with _progress(study.name, len(cells), done=counts.total()) as bar:
        running = 0

        def show(cell: Cell, event: local.Event) -> None:
            nonlocal running
            if event == "started":
                running += 1
            else:
                running -= 1
                counts[event] += 1
                bar.update()
            bar.set_postfix_str(
                f"running {running}, diverged {counts['diverged']}, failed {counts['failed']}",
                refresh=sys.stderr.isatty(),
            )

        local.run(missing, out, workers=workers, threads=threads, on_event=show)
    return counts


def _one_of_each(cells: list[Cell]) -> list[Cell]:
    """A cell of each task and optimizer: they differ in numbers only."""
    return list({(cell.task, cell.optimizer): cell for cell in reversed(cells)}.values())


def _progress(name: str, total: int, done: int) -> tqdm[NoReturn]:
    return tqdm(
        total=total,
        initial=done,
        desc=name,
        unit="run",
        dynamic_ncols=True,
        smoothing=0.05,
        # Into a file, a line every ten seconds instead of ten a second.
        mininterval=0.1 if sys.stderr.isatty() else 10,
        bar_format="{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}, {remaining} left{postfix}",
    )


def _report(study: Study, out: Path, counts: Counter[str]) -> int:
    from lightning_opt.report import write_report  # pandas and matplotlib: only once runs are done

    page = write_report(out)
    print(
        f"{study.name}: {counts['finished']} finished, {counts['diverged']} diverged, "
        f"{counts['failed']} failed."
    )
    if counts["failed"]:
        print("The failures are listed in the report. Run the study again to retry them.")
    print(f"Report: {os.path.relpath(page)}")
    return 1 if counts["failed"] else 0
