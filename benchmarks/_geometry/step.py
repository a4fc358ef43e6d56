"""A Lanczos step beside a gradient: one batch, whose graph can be kept, and many, which cannot."""

from __future__ import annotations

import argparse

import torch

from _measuring import Results, timed
from lightning_opt.geometry import hessian, spectrum

from . import peers
from .problem import Measure, Problem, unit_vector

GRADIENT, OURS = "gradient", "lightning_opt"
PEERS = ("PyHessian", "hessian-eigenthings", "curvlinops")
GIB = 2**30


def step(options: argparse.Namespace) -> None:
    _measure(options, 1, options.steps, None, 2.2)


def many(options: argparse.Namespace) -> None:
    _measure(options, options.batches, 1, 3 * GIB, 3.2)


def _measure(
    options: argparse.Namespace, batches: int, steps: int, memory: int | None, reach: float
) -> None:
    problem = Problem(batches)
    contenders = _contenders(problem, steps, memory)
    results = Results(
        {
            GRADIENT: lambda: timed(problem.gradient),
            **contenders,
        },
        options.repeats if batches == 1 else max(1, options.repeats // 3),
    )
    limit = "" if memory is None else f", {memory / GIB:.0f} GiB for graphs"
    results.show(
        f"A Lanczos step, {batches} batches of 32{limit} (whole runs of {steps}, a step of them)",
        results.seconds,
        GRADIENT,
        [(OURS, reach, GRADIENT), *((OURS, 1.0, peer) for peer in PEERS)],
    )


def _contenders(problem: Problem, steps: int, memory: int | None) -> dict[str, Measure]:
    operator = hessian(problem.loss, problem.params, problem.batches, memory=memory)
    start = unit_vector(problem.params)
    kept = peers.pyhessian(problem)

    def ours() -> float:
        run = lambda: spectrum(operator, steps=steps, samples=0)  # noqa: E731
        return timed(run) / steps

    def pyhessian() -> float:
        return timed(lambda: kept.density(iter=steps, n_v=1)) / steps

    def eigenthings() -> float:
        from hessian_eigenthings import lanczos_tridiagonal

        other = peers.eigenthings(problem)
        return timed(lambda: lanczos_tridiagonal(other, start, steps)) / steps

    def curvlinops() -> float:
        # It leaves the recurrence to SciPy: what counts here are its products.
        other = peers.curvlinops(problem)

        def products() -> None:
            v: torch.Tensor = start
            for _ in range(steps):
                v = other @ v
                v = v / v.norm()

        return timed(products) / steps

    return {
        OURS: ours,
        "PyHessian": pyhessian,
        "hessian-eigenthings": eigenthings,
        "curvlinops": curvlinops,
    }
