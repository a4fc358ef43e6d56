"""What a benchmark prints: tables on its output, its progress beside them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def yes(reached: bool) -> str:
    return "yes" if reached else "no"


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, each row as soon as it is there."""
    print(f"\n{title}\n")
    for line in itertools.chain([header, ["---"] * len(header)], rows):
        print(f"| {' | '.join(line)} |", flush=True)
