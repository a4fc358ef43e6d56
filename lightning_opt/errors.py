"""The errors that the command answers with a message instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """What the user asked for cannot be done as asked: the command prints it and exits with 2.

    The message names the thing, the value and the way out, in a few lines.
    """


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """The candidates closest in spelling to ``name``, best first, whatever their case.

    >>> nearest("yogy", ["adam", "yogi", "sgd"])
    ['yogi']
    """
    by_lowercase = {candidate.lower(): candidate for candidate in candidates}
    close = get_close_matches(name.lower(), by_lowercase, n=count, cutoff=0.6)
    return [by_lowercase[match] for match in close]


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A sentence that ends an error about an unknown ``name``.

    Close matches are suggested; where there are none, all candidates are listed.

    >>> did_you_mean("yogy", ["adam", "yogi", "sgd"])
    'Did you mean yogi?'
    >>> did_you_mean("xyz", ["adam", "sgd"])
    'Known are: adam, sgd.'
    """
    known = sorted(candidates)
    if close := nearest(name, known):
        return f"Did you mean {' or '.join(close)}?"
    return f"Known are: {', '.join(known)}." if known else "There are none."
