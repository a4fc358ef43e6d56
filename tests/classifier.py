"""A small LightningModule, and its data, for the tests of callbacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset


def examples(count: int = 22) -> TensorDataset:
    """In batches of 8, the last one is smaller."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


class Plain(pl.LightningModule):
    """A classifier on tuple batches, trained by whatever optimizer."""

    def __init__(self, build: Callable[..., Optimizer] = SGD, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
        self.build = partial(build, **{"lr": 0.1, **options})

    def loss_terms(self, batch: Any) -> int:
        return len(batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def train_dataloader(self) -> Any:
        return DataLoader(examples(), batch_size=8, shuffle=True)

    def configure_optimizers(self) -> Any:
        return self.build([p for p in self.parameters() if p.requires_grad])
