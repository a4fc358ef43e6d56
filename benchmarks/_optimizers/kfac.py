"""A training step with KFAC, its factors and inverses amortized, beside kfac-pytorch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor

from _measuring import Results

from .contenders import OURS, of
from .networks import resnet18
from .training import SGD, Training, Update, sgd

FACTOR_EVERY, INVERSE_EVERY = 20, 100
SETTLED = 16 * INVERSE_EVERY  # steps after which KFAC's intervals are that long

GOALS = (("KFAC, averaged", 1.15, SGD),)


def kfac(options: argparse.Namespace) -> None:
    measures: dict[str, Callable[[], float]] = {SGD: Training(resnet18, sgd, options.batch)}
    averages = {}
    for name, attach, number in (
        ("KFAC", our_kfac, SETTLED + 1),
        ("kfac-pytorch", kfac_pytorch, 0),
    ):
        training = Amortized(attach, options.batch, number)
        kinds = {f"{name}, {kind}": partial(training.next, kind) for kind in Amortized.KINDS}
        averages[f"{name}, averaged"] = tuple(kinds)
        measures |= kinds
    results = Results(measures, options.repeats)
    for name, parts in averages.items():
        results.combine(name, parts, Amortized.average)
    title = (
        f"A training step with KFAC, batch {options.batch}, "
        f"factors every {FACTOR_EVERY}, inverses every {INVERSE_EVERY}"
    )
    results.show(title, results.seconds, SGD, GOALS)


class Amortized(Training):
    """Training steps of ResNet18 whose cost depends on what is due; ``number`` is the first's."""

    KINDS = ("plain", "factors", "inverses")

    def __init__(self, attach: Callable[[Any], Update], batch: int, number: int) -> None:
        super().__init__(resnet18, attach, batch)
        self.number = number

    def kind(self) -> str:
        if self.number % INVERSE_EVERY == 0:
            return "inverses"
        return "factors" if self.number % FACTOR_EVERY == 0 else "plain"

    def __call__(self, size: int | None = None) -> float:
        seconds = super().__call__(size)
        self.number += 1
        return seconds

    def next(self, kind: str) -> float:
        """Seconds of the next step of this kind, reached by steps on four images."""
        while self.kind() != kind:
            self(4)
        return self()

    @staticmethod
    def average(plain: float, factors: float, inverses: float) -> float:
        """Of a cycle; where inverses are due, so are factors."""
        with_factors = INVERSE_EVERY // FACTOR_EVERY - 1
        plains = INVERSE_EVERY - 1 - with_factors
        return (inverses + with_factors * factors + plains * plain) / INVERSE_EVERY


def our_kfac(training: Training) -> Update:
    intervals = {"factor_every": FACTOR_EVERY, "inverse_every": INVERSE_EVERY}
    build = of(OURS + "KFAC", model=training.model, **intervals)
    optimizer = build(training.model.parameters())
    training.closure(4)
    optimizer.step()
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(SETTLED)
    return optimizer.step  # type: ignore[no-any-return]


def kfac_pytorch(training: Training) -> Update:
    preconditioner = import_module("kfac.preconditioner").KFACPreconditioner(
        training.model, factor_update_steps=FACTOR_EVERY, inv_update_steps=INVERSE_EVERY
    )
    step = sgd(training)

    def update(closure: Callable[[], Tensor]) -> None:
        closure()
        preconditioner.step()
        step()

    return update
