"""From a study's directory to a page: ``write_report``."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_report"]


def write_report(directory: str | Path) -> Path:
    """Writes ``report.html`` from the runs in a study's directory, and from nothing else.

    The page is one file that needs no other. Beside it are its figures (``figures/*.png`` and
    ``*.svg``) and its tables (``tables/*.csv``). It can be written while the study is still
    running: what is missing is said to be. Neither torch nor Lightning is imported.

    Args:
        directory: what ``lightning-opt study NAME --out DIR`` wrote.

    Returns:
        The page's path.

    Raises:
        UsageError: the directory is not a study's.

    >>> write_report("no/such/study")
    Traceback (most recent call last):
    lightning_opt.errors.UsageError: no/such/study is not the directory of a study: ...
    """
    from .write import write  # pandas and matplotlib take a second to import

    return write(Path(directory))
