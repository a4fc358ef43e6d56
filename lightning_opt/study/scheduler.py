"""Runs what is missing of a study, in its directory."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout
from tqdm import tqdm

from lightning_opt.errors import UsageError, did_you_mean
from lightning_opt.files import is_leftover, remove_leftovers, write_json

from . import local
from .grid import Cell, Study, load_study
from .records import MANIFEST, hardware, read_record

_LOCK = ".lock"


def run_study(
    name_or_file: str, out: Path | None = None, workers: int | None = None
) -> tuple[Path, Counter[str]]:
    """Runs a study, or what is left of it.

    Args:
        name_or_file: A shipped study's name or the path of a study file.
        out: The study's directory; ``runs/NAME`` if left out.
        workers: Runs at once; one per core if left out. Each computes with its share of the cores.

    Returns:
        The directory, and how many of the study's runs have each status. A diverged run is a
        result, not a failure.

    Raises:
        UsageError: the study, the directory, or a run directory in it cannot be used; nothing that
            was there is lost.
    """
    study = load_study(name_or_file)
    out = Path("runs") / study.name if out is None else out
    cores = int(hardware()["cores"])
    workers = cores if workers is None else workers
    if workers < 1:
        raise UsageError(f"--workers is a number of at least 1, got {workers}.")
    _check_owner(out, study)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / _LOCK, timeout=0):
            return out, _run_missing(study, out, workers, threads=max(1, cores // workers))
    except Timeout:
        raise UsageError(
            f"Another process is running the study in {out}. Wait for it, or choose another --out."
        ) from None
    except OSError as error:
        raise UsageError(f"{out} cannot be written to: {error}. Choose another --out.") from error


def _check_owner(out: Path, study: Study) -> None:
    """Refuses a directory that is not this study's, before anything is written."""
    way_out = "Choose another directory with --out."
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, not a directory. {way_out}")
    entries = list(out.iterdir()) if out.exists() else []
    if all(entry.name == _LOCK or is_leftover(entry.name) for entry in entries):
        return
    manifest = out / MANIFEST
    try:
        owner = json.loads(manifest.read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, TypeError, KeyError):
        # The names of run directories end in a hash: one of them settles whose directory it is.
        if any((out / cell.directory).is_dir() for cell in study.cells()):
            return
        raise UsageError(
            f"{out} holds something else: it is not empty, and has no readable {MANIFEST} and no "
            f"run of the study {study.name!r}. {way_out}"
        ) from None
    if owner != study.name:
        raise UsageError(f"{out} belongs to the study {owner!r}, not {study.name!r}. {way_out}")


def _run_missing(study: Study, out: Path, workers: int, threads: int) -> Counter[str]:
    cells = study.cells()
    records = {cell.hash: read_record(out / cell.directory, cell) for cell in cells}
    for record in records.values():
        _check_metrics(study, record)
    # What failed is run again: whoever starts the study once more has mended something.
    done = {
        hash_: record["status"]
        for hash_, record in records.items()
        if record is not None and record["status"] != "failed"
    }
    missing = [cell for cell in cells if cell.hash not in done]
    if missing:
        print(
            f"{study.name}: {len(missing)} of {len(cells)} runs to do in {out}, {workers} at a "
            "time. Importing torch and Lightning takes some seconds, once.",
            file=sys.stderr,
        )
        local.check(_samples(missing))
    _tell_what_is_left_out(study, out)
    remove_leftovers(out)
    write_json(out / MANIFEST, study.manifest())
    counts = Counter(done.values())
    with _progress(study.name, len(cells), done=len(done)) as bar:
        running = 0

        def show(change: int) -> None:
            nonlocal running
            running += change
            bar.set_postfix_str(
                f"running {running}, diverged {counts['diverged']}, failed {counts['failed']}",
                refresh=sys.stderr.isatty(),
            )

        def ended(cell: Cell) -> None:
            record = read_record(out / cell.directory, cell)
            _check_metrics(study, record)
            assert record is not None
            counts[record["status"]] += 1
            bar.update()
            show(-1)

        try:
            local.run(
                missing,
                out,
                workers=workers,
                threads=threads,
                on_started=lambda: show(+1),
                on_ended=ended,
            )
        except KeyboardInterrupt:
            bar.close()
            print(
                f"Interrupted: {counts.total()} of {len(cells)} runs are done. The same command "
                "continues, those that were running from their last epoch.",
                file=sys.stderr,
            )
            raise
    return counts


def _check_metrics(study: Study, record: dict[str, Any] | None) -> None:
    """Refuses a study file that selects or reports a metric which a finished run does not have."""
    if record is None or record["status"] != "finished":
        return
    metrics = record["metrics"]
    for key, name in (("select.metric", study.metric), ("test_metric", study.test_metric)):
        if name not in metrics:
            raise UsageError(
                f"{key} is {name!r}, which the runs of the study {study.name!r} do not have. "
                f"{did_you_mean(name, metrics)} Mend the study file and run it again: what is "
                "finished is kept."
            )


def _samples(cells: Sequence[Cell]) -> list[Cell]:
    """Cells among which every value occurs, so that building them finds every value refused.

    Of learning rates, which are known to be positive numbers, one stands for all.
    """
    samples: dict[tuple[str, ...], Cell] = {}
    for cell in cells:
        for key, value in cell.point.items():
            shown = "a rate" if key.rsplit(".", 1)[-1] == "lr" else repr(value)
            samples.setdefault((cell.task, cell.optimizer, key, shown), cell)
    return list({cell.hash: cell for cell in samples.values()}.values())


def _tell_what_is_left_out(study: Study, out: Path) -> None:
    """Says which runs in the directory the study file no longer names."""
    planned = {Path(cell.directory).name for cell in study.cells()}
    others = sorted(path.parent.name for path in out.glob("cells/*/record.json"))
    strangers = [name for name in others if name not in planned]
    if strangers:
        print(
            f"Not in this study file, but in {out}: {len(strangers)} of the runs, such as "
            f"{strangers[0]}. They stay where they are, and the report leaves them out.",
            file=sys.stderr,
        )


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
