"""How many Lanczos steps, samples and images are enough, beside the exact spectrum.

A small network on the digits has a Hessian that can be formed, in float64, and its eigenvalues
computed without Lanczos.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.stats import wasserstein_distance

from _tables import print_table, say
from lightning_opt.geometry import hessian, spectrum

from .digits import Digits, trained


def enough(options: argparse.Namespace) -> None:
    problem = trained("ReLU")
    problem.network.double()
    problem.images = problem.images.double()
    params = list(problem.network.parameters())
    operator = hessian(problem.loss, params, [None])
    say(f"the full Hessian of {operator.shape[0]} parameters")
    identity = torch.eye(operator.shape[0], dtype=torch.float64)
    dense = torch.cat([operator @ columns for columns in identity.split(64, dim=1)], dim=1)
    exact = np.linalg.eigvalsh(dense.numpy())
    _steps(operator, exact, options.seeds)
    _samples(operator, exact, 10)
    _images(problem, params, 10)


def _steps(operator: torch.Tensor, exact: np.ndarray, seeds: int) -> None:
    rows = []
    for steps in (10, 20, 40, 80, 160):
        found = [spectrum(operator, steps=steps, seed=seed) for seed in range(seeds)]
        top = [np.abs(r.eigenvalues[:5] / exact[::-1][:5] - 1) for r in found]
        low = [np.abs(r.eigenvalues[-1] / exact[0] - 1) for r in found]
        density = [wasserstein_distance(r.nodes[0], exact, r.weights[0]) for r in found]
        rows.append(
            [
                str(steps),
                f"{100 * np.max([errors[0] for errors in top]):.2g} %",
                f"{100 * np.max(top):.2g} %",
                f"{100 * np.max(low):.2g} %",
                f"{100 * np.median(density) / (exact[-1] - exact[0]):.2g} %",
            ]
        )
    print_table(
        f"Steps: largest errors over {seeds} seeds; the exact λ₁ is {exact[-1]:.4g}, λ₅ "
        f"{exact[-5]:.4g}, the lowest {exact[0]:.3g}",
        ["steps", "λ₁", "λ₁ to λ₅", "lowest λ", "density (Wasserstein-1 ÷ range)"],
        rows,
    )


def _samples(operator: torch.Tensor, exact: np.ndarray, seeds: int) -> None:
    rows = []
    for label, settings in (
        ("2 probes of 80 steps", {"probes": 2, "steps": 80}),
        ("8 probes of 80 steps", {"probes": 8, "steps": 80}),
        ("1 probe of 80 steps, 5 samples", {"samples": 5, "steps": 80}),
        ("1 probe of 80 steps, 20 samples", {"samples": 20, "steps": 80}),
        ("1 probe of 20 steps, 5 samples", {"samples": 5, "steps": 20}),
        ("5 samples, no run (Hutchinson)", {"samples": 5, "steps": 1, "reorthogonalize": "none"}),
        ("100 samples, no run", {"samples": 100, "steps": 1, "reorthogonalize": "none"}),
    ):
        found = [spectrum(operator, seed=seed, **settings) for seed in range(seeds)]
        errors = np.array([r.trace for r in found]) / exact.sum() - 1
        products = settings.get("probes", 1) * settings["steps"] + settings.get("samples", 0)
        claimed = np.mean([r.trace_stderr for r in found]) / exact.sum()
        rows.append(
            [
                label,
                str(products),
                f"{100 * np.sqrt(np.mean(errors**2)):.2g} %",
                f"{100 * claimed:.2g} %",
            ]
        )
    print_table(
        f"The trace ({exact.sum():.4g}), over {seeds} seeds",
        ["", "products", "root mean square error", "standard error it claims"],
        rows,
    )


def _images(problem: Digits, params: list[torch.Tensor], draws: int) -> None:
    rows = []
    for count in (32, 128, 512, 1437):
        tops, traces = [], []
        for seed in range(draws if count < 1437 else 1):
            generator = torch.Generator().manual_seed(seed)
            images = torch.randperm(1437, generator=generator)[:count]
            result = spectrum(hessian(problem.loss, params, [images]), steps=40, samples=20)
            tops.append(result.eigenvalues[0])
            traces.append(result.trace)
        rows.append(
            [
                str(count),
                f"{np.mean(tops):.3g} ± {np.std(tops):.2g}",
                f"{min(tops):.3g} to {max(tops):.3g}",
                f"{np.mean(traces):.3g} ± {np.std(traces):.2g}",
            ]
        )
    print_table(
        f"Images: the Hessian of a part of the 1,437, {draws} draws",
        ["images", "λ₁, mean and standard deviation", "range", "trace"],
        rows,
    )
