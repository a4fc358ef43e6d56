"""When a method that amortizes expensive work over several steps does it."""

from __future__ import annotations


def is_due(step: int, every: int) -> bool:
    """Whether work that is done every so many steps is to be done at ``step``, counted from 1.

    At the start of training, statistics change from one step to the next, and what was computed
    from the first batch alone must not steer the first ``every`` steps. So the work is also due at
    the powers of two before the interval is reached, which adds log₂(every) times to a whole run.

    >>> [step for step in range(1, 61) if is_due(step, 20)]
    [1, 2, 4, 8, 16, 20, 40, 60]
    >>> all(is_due(step, 1) for step in range(1, 61))
    True
    """
    is_power_of_two = step & (step - 1) == 0
    return step % every == 0 or (step < every and is_power_of_two)
