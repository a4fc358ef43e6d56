"""When amortized work is due."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest

from lightning_opt.optimizers._schedule import is_due


def due(every: int, steps: int) -> list[int]:
    """In exact numbers: wherever a power of 17/16 has been reached, then at the multiples."""
    found, power = [], Fraction(1)
    for step in range(1, steps + 1):
        reached = power <= step
        while power <= step:
            power *= Fraction(17, 16)
        if reached if step < 16 * every else step % every == 0:
            found.append(step)
    return found


@pytest.mark.parametrize("every", [1, 2, 3, 20, 100])
def test_interval_grows_with_the_steps_taken(every: int) -> None:
    steps = 20 * every + 50
    assert [step for step in range(1, steps + 1) if is_due(step, every)] == due(every, steps)


def test_no_interval_is_longer_than_a_sixteenth_of_the_run() -> None:
    """Nor than was asked for; and no work is done twice as often as that."""
    steps = [step for step in range(1, 10_000) if is_due(step, 100)]
    for before, after in pairwise(steps):
        allowed = min(100, max(1, after / 16))
        assert after - before <= allowed + 1
        if 32 <= after < 1600 or after > 1700:
            assert after - before >= allowed / 2


def test_powers_of_two(short_run: None) -> None:
    """What the other tests of short runs rely on."""
    assert [step for step in range(1, 30) if is_due(step, 10)] == [1, 2, 4, 8, 10, 20]
    assert [step for step in range(1, 13) if is_due(step, 4)] == [1, 2, 4, 8, 12]
