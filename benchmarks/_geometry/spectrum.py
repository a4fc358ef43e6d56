"""Density, the five largest eigenvalues and the trace with its error, at matched accuracy.

One Krylov run gives us all three. A peer runs an algorithm for each, set to reach our accuracy:
Lanczos as many steps for the density, Lanczos or power iterations for the eigenvalues until
they are within 1 % of ours, and as many of Hutchinson's products as make the standard error of the
trace ours; what a single one varies by is known from a sample of them.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from _measuring import Results, timed
from _tables import print_table, say
from lightning_opt.geometry import hessian
from lightning_opt.geometry import spectrum as lanczos_spectrum

from . import peers
from .problem import Problem

STEPS, SAMPLES, TOP = 50, 8, 5
PRODUCTS = (10, 15, 20, 30, 40, 60, 80)


def spectrum(options: argparse.Namespace) -> None:
    problem = Problem(trained=True)
    operator = hessian(problem.loss, problem.params, problem.batches)
    say("what is to be matched")
    ours = lanczos_spectrum(operator, steps=STEPS, samples=SAMPLES, top=TOP, bottom=0)
    plain = lanczos_spectrum(operator, steps=1, samples=30, top=0, bottom=0, reorthogonalize="none")
    probes = max(2, math.ceil((plain.trace_stderr * math.sqrt(30) / ours.trace_stderr) ** 2))
    print_table(
        "What is to be matched",
        ["", ""],
        [
            ["largest eigenvalues", ", ".join(f"{value:.4g}" for value in ours.eigenvalues)],
            ["their residuals", ", ".join(f"{value:.1g}" for value in ours.residuals)],
            ["trace", f"{ours.trace:.5g} ± {ours.trace_stderr:.2g} ({SAMPLES} samples)"],
            ["Hutchinson's", f"{plain.trace:.5g} ± {plain.trace_stderr:.2g} (30 samples)"],
            ["products for the same error", str(probes)],
        ],
    )
    tasks = {**_pyhessian(problem, ours.eigenvalues, probes)}
    tasks |= _eigenthings(problem, ours.eigenvalues, probes)
    tasks |= _curvlinops(problem, ours.eigenvalues, probes)
    fresh = lambda: hessian(problem.loss, problem.params, problem.batches)  # noqa: E731
    name = "lightning_opt: all three"
    results = Results(
        {
            name: lambda: timed(
                lambda: lanczos_spectrum(fresh(), steps=STEPS, samples=SAMPLES, top=TOP)
            ),
            **{task: (lambda work=work: timed(work)) for task, work in tasks.items()},
        },
        max(1, options.repeats // 3),
    )
    sums = {}
    for peer in ("PyHessian", "hessian-eigenthings", "curvlinops"):
        own = [task for task in tasks if task.startswith(peer)]
        sums[f"{peer}: sum"] = own
        results.combine(f"{peer}: sum", own, lambda *seconds: sum(seconds))
    best = "best of each"
    kinds = ("density", "top 5", "trace")
    for kind in kinds:
        own = [task for task in tasks if kind in task and results.seconds[task]]
        results.combine(f"best {kind}", own, min)
    results.combine(best, [f"best {kind}" for kind in kinds], lambda *seconds: sum(seconds))
    results.show(
        f"Density of {STEPS} steps, top {TOP} within 1 %, trace with the same error",
        results.seconds,
        name,
        [(name, 1 / 3, peer) for peer in (*sums, best)],
    )


def _right(found: object, wanted: np.ndarray) -> bool:
    values = np.sort(np.asarray(found, dtype=float))[::-1][:TOP]
    return len(values) == TOP and bool(np.all(np.abs(values - wanted) < 0.01 * np.abs(wanted)))


def _pyhessian(problem: Problem, wanted: np.ndarray, probes: int) -> dict[str, object]:
    kept = peers.pyhessian(problem)
    tolerance = 1e-3
    while tolerance > 1e-6 and not _right(
        kept.eigenvalues(maxIter=100, tol=tolerance, top_n=TOP)[0], wanted
    ):
        tolerance /= 10
    say(f"PyHessian: tol={tolerance}")
    return {
        "PyHessian: density": lambda: kept.density(iter=STEPS, n_v=1),
        f"PyHessian: top 5, tol={tolerance:.0e}": lambda: kept.eigenvalues(
            maxIter=100, tol=tolerance, top_n=TOP
        ),
        "PyHessian: trace": lambda: kept.trace(maxIter=probes, tol=0.0),
    }


def _eigenthings(problem: Problem, wanted: np.ndarray, probes: int) -> dict[str, object]:
    from hessian_eigenthings import hutchinson, lanczos, spectral_density

    operator = peers.eigenthings(problem)

    def top(products: int) -> object:
        return lanczos(operator, k=TOP, max_iter=products, which="LA", seed=1).eigenvalues

    needed = next((n for n in PRODUCTS if _right(top(n), wanted)), PRODUCTS[-1])
    return {
        "hessian-eigenthings: density": lambda: spectral_density(
            operator, num_runs=1, lanczos_steps=STEPS, seed=0
        ),
        f"hessian-eigenthings: top 5, {needed} steps": lambda: top(needed),
        "hessian-eigenthings: trace": lambda: hutchinson(operator, num_samples=probes, seed=0),
    }


def _curvlinops(problem: Problem, wanted: np.ndarray, probes: int) -> dict[str, object]:
    from curvlinops import hutchinson_trace, lanczos_approximate_spectrum
    from scipy.sparse.linalg import eigsh

    operator = peers.curvlinops(problem)

    def top() -> object:
        return eigsh(operator.to_scipy(), k=TOP, which="LA", tol=1e-2, return_eigenvectors=False)

    extremes = float(wanted[0])

    def density() -> object:
        # Its boundaries are given: it would look for them with SciPy first.
        return lanczos_approximate_spectrum(operator, STEPS, boundaries=(-extremes, extremes))

    return {
        "curvlinops: density": density,
        "curvlinops: top 5, SciPy": top,
        "curvlinops: trace": lambda: hutchinson_trace(operator, probes),
    }
