"""Runs cells in worker processes of this machine, one process a cell.

Importing torch and Lightning takes seconds. A server process does it once, and each worker is a
fork of it: it starts in milliseconds, and a crash takes nothing else down.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from lightning_opt.errors import UsageError

from .grid import Cell
from .records import LOG, RECORD, USAGE, Outcome, iso_time, read_record, write_record

ATTEMPTS = 3

_WORKER = "lightning_opt.study.worker"


def check(cells: Sequence[Cell]) -> None:
    """Builds the cells' classes in a worker process, so that a mistake shows before any run.

    Raises:
        UsageError: a configuration names a class or an option that does not exist, or a class
            refuses its arguments.
    """
    receive, send = multiprocessing.Pipe(duplex=False)
    process = _context().Process(target=_check, args=(cells, send))
    process.start()
    send.close()
    try:
        problem = receive.recv()
    except EOFError:
        raise RuntimeError("The worker process that checks the study's classes died.") from None
    process.join()
    if problem is not None:
        raise UsageError(problem)


def run(
    cells: Sequence[Cell],
    out: Path,
    *,
    workers: int,
    threads: int,
    on_started: Callable[[], None],
    on_ended: Callable[[Cell], None],
) -> None:
    """Runs every cell to its record, ``workers`` at a time.

    A process that ends without a record is tried again, ``ATTEMPTS`` times in all, each time from
    its last checkpoint; then the failure is recorded with the end of its log. So is an error that
    would come again, at once.

    Args:
        cells: What to run, in this order.
        out: The study's directory.
        workers: Processes at once.
        threads: Threads that each of them computes with.
        on_started: Called when a cell starts.
        on_ended: Called with a cell when its record is written.
    """
    context = _context()
    waiting = deque((cell, 1) for cell in cells)
    running: dict[int, tuple[BaseProcess, Cell, int, str]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell, attempt = waiting.popleft()
                if attempt == 1:
                    (out / cell.directory / RECORD).unlink(missing_ok=True)  # of a failure
                now = time.time()
                process: BaseProcess = context.Process(
                    target=_run,
                    args=(cell, out / cell.directory, attempt, threads, now),
                    daemon=False,  # a daemon may not have children, such as data loader workers
                )
                process.start()
                running[process.sentinel] = (process, cell, attempt, iso_time(now))
                if attempt == 1:
                    on_started()
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                process, cell, attempt, started = running.pop(sentinel)
                process.join()
                if read_record(out / cell.directory, cell) is None:
                    if attempt < ATTEMPTS and process.exitcode != USAGE:
                        waiting.appendleft((cell, attempt + 1))
                        continue
                    _record_failure(out / cell.directory, cell, process, attempt, started)
                on_ended(cell)
    finally:
        for process, *_ in running.values():
            process.kill()  # files are renamed into place, so nothing is left half-written
            process.join()


def _record_failure(
    directory: Path, cell: Cell, process: BaseProcess, attempt: int, started: str
) -> None:
    code = process.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    lines = 1 if code == USAGE else 12
    error = f"The process {how}.\n{_last_lines(directory / LOG, lines)}"
    outcome = Outcome("failed", metrics={}, cost={}, error=error)
    write_record(
        directory, cell, outcome, attempts=attempt, started=started, ended=iso_time(time.time())
    )


def _last_lines(log: Path, count: int) -> str:
    if not log.exists():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def _context() -> ForkServerContext | SpawnContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")  # Windows: each worker imports for itself
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_WORKER])
    return context


# The scheduler itself never imports torch: these look the worker up once they are in a process.


def _run(cell: Cell, directory: Path, attempt: int, threads: int, scheduled: float) -> None:
    from .worker import run_in_process

    run_in_process(cell, directory, attempt, threads, scheduled)


def _check(cells: Sequence[Cell], answer: multiprocessing.connection.Connection) -> None:
    from .worker import check_in_process

    check_in_process(cells, answer)
