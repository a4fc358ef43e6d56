"""Measuring: times that can be compared, memory, and both in a process of their own.

Times are taken in repeats that alternate: every measure once, then every one once more. A ratio is
the median of the ratios within the repeats, so that a machine that slows down in between slows both
sides.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from _tables import print_table, reason, say, yes

# A figure to reach: a name, and at most how many times the time of another name.
Goal = tuple[str, float, str]


class Results:
    """Seconds by name, one a repeat, and why those without any failed."""

    def __init__(self, measures: Mapping[str, Callable[[], float]], repeats: int) -> None:
        """Take every measure once to warm up, then every one once a repeat."""
        self.seconds: dict[str, list[float]] = {name: [] for name in measures}
        self.failed: dict[str, str] = {}
        try:
            for repeat in range(repeats + 1):
                for name, measure in measures.items():
                    if name not in self.failed:
                        say(f"{f'{repeat}/{repeats}' if repeat else 'warming up'}: {name}")
                        self._take(name, measure, keep=repeat > 0)
        except KeyboardInterrupt:
            say("interrupted: this is what there is")

    def _take(self, name: str, measure: Callable[[], float], *, keep: bool) -> None:
        try:
            seconds = measure()
        except Exception as error:  # a peer may fail in any way
            self.failed[name] = reason(error)
        else:
            self.seconds[name] += [seconds] if keep else []

    def combine(self, name: str, others: Iterable[str], function: Callable[..., float]) -> None:
        """Add what is computed, repeat by repeat, from other measures."""
        others = list(others)
        rows = zip(*(self.seconds[other] for other in others), strict=False)
        self.seconds[name] = [function(*row) for row in rows]
        for other in set(others) & set(self.failed):
            self.failed[name] = self.failed[other]

    def ratio(self, name: str, other: str) -> float:
        pairs = zip(self.seconds[name], self.seconds[other], strict=False)
        return median([mine / theirs for mine, theirs in pairs] or [float("nan")])

    def show(
        self, title: str, names: Iterable[str], reference: str, goals: Sequence[Goal] = ()
    ) -> None:
        header = ["", "ms", f"× {reference}", "to reach", "reached"]
        print_table(title, header, (self._row(name, reference, goals) for name in names))

    def _row(self, name: str, reference: str, goals: Sequence[Goal]) -> list[str]:
        if name in self.failed or not self.seconds[name]:
            return [name, f"none: {self.failed.get(name, 'interrupted')}", "", "", ""]
        own = [(bound, o) for n, bound, o in goals if n == name and self.seconds.get(o)]
        ratios = [self.ratio(name, other) for _, other in own]
        return [
            name,
            f"{1000 * median(self.seconds[name]):.4g}",
            f"{self.ratio(name, reference):.3g}",
            "; ".join(f"≤ {bound:.3g} × {other}" for bound, other in own),
            "; ".join(
                f"{yes(ratio <= bound)}, {ratio:.3g}"
                for ratio, (bound, _) in zip(ratios, own, strict=True)
            ),
        ]


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def allocations(**phases: Callable[[], object]) -> dict[str, tuple[int, int]]:
    """Bytes of tensors that each phase leaves, and the most that it holds, beyond those before it.

    PyTorch's profiler records every allocation of a tensor: those inside of a kernel, which a
    dispatch mode does not see, those of compiled code, and none of the caches that the memory of a
    process includes. It misses the release of what is older than itself, so all phases run in one.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for name, phase in phases.items():
            with record_function(name):
                phase()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(path := f"{folder}/trace.json")
        events = json.loads(Path(path).read_bytes())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    found = {}
    for name in phases:
        event = next(e for e in events if e["name"] == name)
        start, end = event["ts"], event["ts"] + event["dur"]
        held = list(itertools.accumulate((b for t, b in changes if start <= t <= end), initial=0))
        found[name] = held[-1], max(held)
    return found


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
