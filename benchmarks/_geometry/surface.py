"""A point of a plane beside a forward pass and beside loss-landscapes."""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch.nn import functional as F

from _measuring import Results, timed
from _tables import print_table
from lightning_opt.geometry import directions, plane

from .problem import Problem

FORWARD, OURS, COMPILED, PEER = (
    "forward, eager, inference_mode",
    "plane",
    "plane of the compiled loss",
    "loss-landscapes",
)


def surface(options: argparse.Namespace) -> None:
    problem = Problem()
    (batch,) = problem.batches
    axes = directions.random(problem.params)
    side = 5
    grid = np.linspace(-1, 1, side)

    def forward() -> float:
        def work() -> None:
            with torch.inference_mode():
                for _ in range(side * side):
                    problem.loss(batch)

        return timed(work) / side**2

    def ours(loss: object) -> float:
        run = lambda: plane(loss, problem.params, [batch], axes, grid, grid)  # noqa: E731
        return timed(run) / side**2

    def peer() -> float:
        import loss_landscapes
        from loss_landscapes.metrics import Loss

        metric = Loss(F.cross_entropy, *batch)
        run = lambda: (  # noqa: E731
            # By filter or layer it divides by the norm of biases that are zero.
            loss_landscapes.random_plane(problem.network, metric, 1, side, normalization="model")
        )
        with torch.inference_mode(False):
            return timed(run) / side**2

    compiled = torch.compile(problem.loss)
    start = time.perf_counter()
    with torch.no_grad():
        compiled(batch)
    seconds = time.perf_counter() - start
    results = Results(
        {
            FORWARD: forward,
            OURS: lambda: ours(problem.loss),
            COMPILED: lambda: ours(compiled),
            PEER: peer,
        },
        options.repeats,
    )
    results.show(
        "A point of a plane, 32 images",
        results.seconds,
        FORWARD,
        [(COMPILED, 0.9, FORWARD)],
    )
    point = float(np.median(results.seconds[COMPILED]))
    eager = float(np.median(results.seconds[FORWARD]))
    print_table(
        f"Whole planes with {seconds:.0f} s of compiling",
        ["points", "batches of 32", "× forward"],
        [
            [
                f"{side} × {side}",
                str(batches),
                f"{(seconds / side**2 / batches + point) / eager:.3g}",
            ]
            for side in (25, 51)
            for batches in (1, 8)
        ],
    )
