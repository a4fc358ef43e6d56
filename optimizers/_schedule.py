"""When a method that amortizes expensive work over several steps does it."""

from __future__ import annotations

from math import floor, log

# What the interval is of the steps taken, until it is as long as asked for.
_SHARE = 1 / 16


def is_due(step: int, every: int) -> bool:
    """Whether work that is done every so many steps is to be done at ``step``, counted from 1.

    At the start of training the statistics change from one step to the next, and what was computed
    from the first batches must not steer many steps. Step t changes an average by a share of 1/t:
    therefore the interval grows with the steps taken, as a sixteenth of them, until it is
    ``every``. To a whole run this adds some 16 · ln(every) times.

    >>> [step for step in range(1, 67) if is_due(step, 20)][18:]
    [19, 20, 21, 23, 24, 25, 27, 29, 30, 32, 34, 36, 38, 41, 43, 46, 49, 52, 55, 59, 62, 66]
    >>> [step for step in range(281, 400) if is_due(step, 20)]
    [281, 299, 318, 320, 340, 360, 380]
    >>> all(is_due(step, 1) for step in range(1, 61))
    True
    """
    if step * _SHARE >= every:
        return step % every == 0
    return step == 1 or _renewals(step) > _renewals(step - 1)


def _renewals(step: int) -> int:
    return floor(log(step) / log(1 + _SHARE))
