"""Small networks on scikit-learn's digits, trained: what can be compared with exact answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_opt.models import ShallowCNN

NETWORKS = ("convolutions", "ReLU", "tanh", "BatchNorm")


@dataclass
class Digits:
    """A network and the images that it was trained on."""

    network: nn.Module
    images: Tensor
    labels: Tensor

    def loss(self, rows: Tensor | None) -> tuple[Tensor, int]:
        """Of some images, None for all."""
        images, labels = self.images, self.labels
        if rows is not None:
            images, labels = images[rows], labels[rows]
        return F.cross_entropy(self.network(images), labels), len(labels)


def trained(name: str = NETWORKS[0], *, seed: int = 0, epochs: int = 10) -> Digits:
    torch.manual_seed(seed)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:1437, None] / 16
    problem = Digits(network(name), images, torch.tensor(digits.target)[:1437])
    optimizer = torch.optim.Adam(problem.network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            problem.loss(rows)[0].backward()
            optimizer.step()
    problem.network.eval()
    return problem


def network(name: str) -> nn.Module:
    if name == "convolutions":
        return ShallowCNN(num_classes=10, in_channels=1)
    activations: Mapping[str, type[nn.Module]] = {"tanh": nn.Tanh}
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width in ((64, 64), (64, 32)):
        layers.append(nn.Linear(width_in, width))
        if name == "BatchNorm":
            layers.append(nn.BatchNorm1d(width))
        layers.append(activations.get(name, nn.ReLU)())
    return nn.Sequential(*layers, nn.Linear(32, 10))
