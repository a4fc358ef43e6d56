"""Training steps: forward, backward and update."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from _measuring import timed

SGD = "torch SGD"

Update = Callable[..., Any]  # a training step, of a closure


class Training:
    """Training steps on one batch of random images.

    Args:
        make: makes the model.
        attach: from this object to its update, a function of a closure, made before the first step.
        batch: number of images.
    """

    def __init__(
        self, make: Callable[[], nn.Module], attach: Callable[[Any], Update], batch: int
    ) -> None:
        torch.manual_seed(0)
        self.model = make()
        self.attach = attach
        self.images = torch.randn(batch, 3, 32, 32)
        self.labels = torch.randint(100, (batch,))

    @cached_property
    def update(self) -> Update:
        return self.attach(self)

    def closure(self, size: int | None = None) -> Tensor:
        """The loss, and its gradients; of the first ``size`` images only, if given."""
        self.model.zero_grad()
        loss = cross_entropy(self.model(self.images[:size]), self.labels[:size])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def __call__(self, size: int | None = None) -> float:
        """Seconds of a step."""
        return timed(partial(self.update, partial(self.closure, size)))


def sgd(training: Training) -> Update:
    return torch.optim.SGD(training.model.parameters(), lr=0.01).step
