"""Writing files so that a reader sees the old content or the new, never half of either."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and renames it over ``path`` on success.

    The temporary name ends like ``path``, because savers such as ``numpy.savez`` append an ending
    that they do not find. After an exception ``path`` is as it was and the temporary file is gone.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "notes.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Removes temporary files that killed processes left in ``directory``.

    Only to be called where no other process writes meanwhile.
    """
    for path in directory.glob(".*.tmp*"):
        if is_leftover(path.name):
            path.unlink(missing_ok=True)


def is_leftover(name: str) -> bool:
    """Whether a file's name is one that :func:`replacing` gives to temporary files.

    >>> is_leftover(".study.123.tmp.json"), is_leftover(".gitignore")
    (True, False)
    """
    return re.fullmatch(r"\..*\.\d+\.tmp(\..*)?", name) is not None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes ``text`` in UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically.

    Raises:
        ValueError: ``value`` holds a NaN or an infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
