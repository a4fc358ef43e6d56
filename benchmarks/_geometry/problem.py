"""What is analyzed: ResNet18 for 32 × 32 images, 100 classes, in eval mode, in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_opt.models import ResNet18

Batch = tuple[Tensor, Tensor]
IMAGES = 32  # a batch


class Problem:
    """A network, its batches and the mean loss of one."""

    def __init__(self, batches: int = 1, *, trained: bool = False) -> None:
        torch.manual_seed(0)
        self.network = ResNet18(num_classes=100)
        self.batches = [random_batch(seed) for seed in range(batches)]
        if trained:
            train(self.network, self.batches)
        self.network.eval()
        self.params = list(self.network.parameters())

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def gradient(self) -> None:
        for batch in self.batches:
            torch.autograd.grad(self.loss(batch), self.params)


def random_batch(seed: int) -> Batch:
    """Every class has an image of its own, which the images of the class are noisy copies of."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 100, (IMAGES,), generator=generator)
    noise = torch.randn(IMAGES, 3, 32, 32, generator=generator)
    return class_images()[labels] + noise, labels


@cache
def class_images() -> Tensor:
    return torch.randn(100, 3, 32, 32, generator=torch.Generator().manual_seed(1_000_000))


def train(network: nn.Module, batches: list[Batch], steps: int = 30) -> None:
    """Some steps, after which the Hessian has the outliers that trained networks have."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for step in range(steps):
        images, labels = batches[step % len(batches)]
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()


def unit_vector(params: list[nn.Parameter], seed: int = 0) -> Tensor:
    size = sum(param.numel() for param in params)
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


Measure = Callable[[], float]
