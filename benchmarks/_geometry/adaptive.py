"""Adaptive planes of trained networks: how many evaluations, and the largest error drawn."""

from __future__ import annotations

import argparse

import numpy as np

from _tables import print_table, say, yes
from lightning_opt.geometry import directions, plane

from .digits import NETWORKS, trained

SIDE, TOLERANCE = 51, 0.01


def adaptive(options: argparse.Namespace) -> None:
    rows = []
    for name in NETWORKS:
        for seed in range(options.seeds):
            for span in (0.5, 1.0):
                say(f"adaptive: {name}, seed {seed}, span {span}")
                share, error = _measure(name, seed, span)
                reached = share <= 1 / 5 and error <= TOLERANCE
                rows.append((name, span, share, error, reached))
    table = [
        [name, f"{span}", *_spread(rows, name, span)] for name in NETWORKS for span in (0.5, 1.0)
    ]
    print_table(
        f"Planes of {SIDE} × {SIDE} with tolerance={TOLERANCE}, {options.seeds} networks each",
        ["network on the digits", "span", "evaluated", "largest error", "≤ 1/5 and ≤ 1 %"],
        table,
    )


def _spread(rows: list[tuple[str, float, float, float, bool]], name: str, span: float) -> list[str]:
    own = [row for row in rows if row[:2] == (name, span)]
    shares, errors = [row[2] for row in own], [row[3] for row in own]
    return [
        f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %",
        f"{100 * min(errors):.2f} to {100 * max(errors):.2f} %",
        yes(all(row[4] for row in own)),
    ]


def _measure(name: str, seed: int, span: float) -> tuple[float, float]:
    """The share that was evaluated; the largest error of what was not, over the drawn range."""
    problem = trained(name, seed=seed)
    params = list(problem.network.parameters())
    grid = np.linspace(-span, span, SIDE)
    axes = directions.random(params, seed=seed)

    full = plane(problem.loss, params, [None], axes, grid, grid)
    found = plane(problem.loss, params, [None], axes, grid, grid, tolerance=TOLERANCE)
    clip = float(np.median(full.values))
    drawn, wanted = (np.minimum(values, clip) for values in (found.values, full.values))
    error = np.abs(drawn - wanted).max() / (clip - full.values.min())
    return float(found.evaluated.mean()), float(error)
