"""An optimizer's steps alone, without the forward and backward before them."""

from __future__ import annotations

import itertools
from functools import cache, cached_property
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from _measuring import timed

from .contenders import Contender
from .networks import resnet18


@cache
def gradients() -> list[list[Tensor]]:
    """Four sets of gradients, of a usual size."""
    shapes = [theta.shape for theta in resnet18().parameters()]
    return [[1e-3 * torch.randn(shape) for shape in shapes] for _ in range(4)]


class Steps:
    """One optimizer's steps on a network of its own, with gradients already there."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._gradients = itertools.cycle(gradients())
        self._taken = 0

    @cached_property
    def params(self) -> list[nn.Parameter]:
        """Parameters, whose gradients lie where backward has put them."""
        torch.manual_seed(0)
        model = resnet18()
        cross_entropy(model(torch.randn(16, 3, 32, 32)), torch.randint(100, (16,))).backward()  # type: ignore[no-untyped-call]
        return list(model.parameters())

    @cached_property
    def optimizer(self) -> Any:
        optimizer = self.contender.build(self.params)
        getattr(optimizer, "train", lambda: None)()  # Schedule-Free insists
        return optimizer

    def fill(self) -> None:
        """Give the parameters fresh gradients; some peers change or drop those they had."""
        for theta, g in zip(self.params, next(self._gradients), strict=True):
            theta.grad = g.clone() if theta.grad is None else theta.grad.copy_(g)

    def step(self) -> float:
        self.fill()
        self._taken += 1
        return timed(self.optimizer.step)

    def __call__(self) -> float:
        """Mean seconds of a step over one cycle."""
        while self._taken < self.contender.settled:
            self.step()
        seconds = mean(self.step() for _ in range(self.contender.cycle))
        self.fill()
        return seconds
