"""A training step with Shampoo, its roots amortized, and the step alone beside peers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from _measuring import Results, timed

from .alone import Steps
from .contenders import OURS, Contender, heavyball, of
from .networks import resnet18
from .training import SGD, Training, sgd

GRADIENT = "forward and backward"

# Alike: blocks of 256, statistics at every step, roots (SOAP: bases) every 20.
SHAMPOO = (
    Contender(SGD, of("torch.optim.SGD", lr=0.1, momentum=0.9)),
    Contender("Shampoo", of(OURS + "Shampoo"), 20, 320),
    Contender(
        "Shampoo, alike",
        of(OURS + "Shampoo", block_size=256, statistics_every=1, root_every=20),
        20,
        320,
    ),
    Contender(
        "pytorch_optimizer ScalableShampoo, alike",
        of(
            "pytorch_optimizer.ScalableShampoo",
            block_size=256,
            statistics_compute_steps=1,
            preconditioning_compute_steps=20,
            start_preconditioning_step=1,
        ),
        20,
    ),
    Contender(
        "heavyball SOAP, alike",
        heavyball("SOAP", precondition_frequency=20, max_precond_dim=256, split=True),
        20,
    ),
)

GOALS = (
    ("Shampoo, alike", 1 / 2, "pytorch_optimizer ScalableShampoo, alike"),
    ("Shampoo, alike", 1 / 2, "heavyball SOAP, alike"),
    ("Shampoo, training", 1.08, f"{SGD}, training"),
)


def shampoo(options: argparse.Namespace) -> None:
    training = Training(resnet18, sgd, options.batch)
    measures: dict[str, Callable[[], float]] = {GRADIENT: partial(timed, training.closure)}
    measures |= {c.name: Steps(c) for c in SHAMPOO}
    results = Results(measures, options.repeats)
    results.show("Shampoo's step alone", [c.name for c in SHAMPOO], SGD, GOALS)
    trained = {f"{c.name}, training": (GRADIENT, c.name) for c in SHAMPOO}
    for name, parts in trained.items():
        results.combine(name, parts, lambda gradient, step: gradient + step)
    title = f"A training step with Shampoo, batch {options.batch}: {GRADIENT}, then the step"
    results.show(title, trained, f"{SGD}, training", GOALS)
