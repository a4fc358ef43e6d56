"""A step alone, gradients there, and what a process' first steps cost beyond later ones."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from unittest.mock import patch

import torch

from _measuring import Results, in_new_process, timed
from _tables import print_table, say

from .alone import Steps
from .contenders import ELEMENTWISE, FUSED, HEAVY, STEP, Contender

GOALS = (
    ("Yogi", 3, FUSED),
    ("Yogi, compiled", 1.15, FUSED),
    ("Yogi, compiled", 1 / 4, "pytorch_optimizer Yogi"),
    ("Ranger", 3, FUSED),
    ("Ranger, compiled", 1.15, FUSED),
    ("Ranger, compiled", 1 / 4, "pytorch_optimizer Ranger"),
    ("Lookahead, fused Adam", 1.2, FUSED),
)


def step(options: argparse.Namespace) -> None:
    results = Results(isolated(STEP, options.threads), options.repeats)
    results.show("A step alone, gradients there", results.seconds, FUSED, GOALS)
    header = ["", "without a cache", "in the process after it"]
    rows = (first_row(name, options.threads) for name in ELEMENTWISE if name not in results.failed)
    print_table("The first 12 steps of a process, beyond 12 later ones", header, rows)
    results = Results({c.name: Steps(c) for c in HEAVY}, options.repeats)
    results.show("A step alone, of methods that precondition", results.seconds, FUSED)


def isolated(contenders: Iterable[Contender], threads: int) -> dict[str, Callable[[], float]]:
    """Measures of a step, each in a process of its own.

    Where the parameters, gradients and state of a process happen to lie in memory makes torch's
    fused Adam and other single passes 1.5 times as fast in one process as in another, throughout.
    """
    return {c.name: partial(in_new_process, step_seconds, c.name, threads) for c in contenders}


def step_seconds(name: str, threads: int) -> float:
    """Mean seconds of a step, after one cycle of them."""
    torch.set_num_threads(threads)
    steps = Steps(named(name))
    steps()
    return steps()


def named(name: str) -> Contender:
    return next(contender for contender in STEP if contender.name == name)


def first_row(name: str, threads: int) -> list[str]:
    say(f"first steps: {name}")
    with tempfile.TemporaryDirectory() as folder:
        with patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
            both = [in_new_process(first_seconds, name, threads) for _ in range(2)]
    return [name, *(f"{seconds:.1f} s" for seconds in both)]


def first_seconds(name: str, threads: int) -> float:
    """Seconds that a process' first 12 steps, or two periods of Lookahead, take beyond 12 later."""
    torch.set_num_threads(threads)
    steps = Steps(named(name))
    steps.fill()
    first = timed(lambda: steps.optimizer) + sum(steps.step() for _ in range(12))
    return first - 12 * median(steps.step() for _ in range(12))
