"""A small LightningModule, of either flavor, and its data, for the tests of callbacks."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, Dataset, TensorDataset


def examples(count: int = 22) -> TensorDataset:
    """In batches of 8, the last one is smaller."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


def read(path: Path) -> dict[str, Any]:
    """The arrays of a result's file."""
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


class Classifier:
    """What either flavor's module has: a classifier on tuple batches, for whatever optimizer."""

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


class Plain(Classifier, pl.LightningModule):
    """A classifier of ``pytorch_lightning``."""


def other_plain() -> type[Any]:
    """The same of ``lightning.pytorch``."""
    from lightning.pytorch import LightningModule

    class OtherPlain(Classifier, LightningModule):
        pass

    return OtherPlain


class Noisy(Dataset):
    """Augments its examples from every random generator there is."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = examples()[index]
        return x + 0.1 * torch.randn(6) + random.random() + float(np.random.rand()), y


class Everything(Plain):
    """Whatever a training_step may change, this one changes."""

    def __init__(self, workers: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2)
        )
        self.teacher = nn.Linear(6, 4).requires_grad_(False)
        self.always_evaluated = nn.Dropout(0.5)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.metrics = torchmetrics.MetricCollection(
            [torchmetrics.CatMetric(), torchmetrics.MeanMetric()]
        )
        self.history: list[Tensor] = []
        self.nested = {"losses": {"train": []}, "sum": torch.zeros(())}
        self.recent: deque[float] = deque(maxlen=3)
        self.names: set[int] = set()
        self.array = np.zeros(2)
        self.total = torch.zeros(())
        self.count = 0
        self.workers = workers
        self.generator = torch.Generator().manual_seed(5)

    def on_train_start(self) -> None:
        self.always_evaluated.eval()

    def on_validation_model_zero_grad(self) -> None:
        """Keeps the gradients, which Lightning would drop here."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        x = x + 0.01 * (random.random() + float(np.random.rand()))
        logits = self.network(x)
        loss = F.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.metrics.update(loss.detach())
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict({"train_loss": loss, "hidden": logits.mean()}, on_step=False, on_epoch=True)
        self.history.append(loss.detach())
        self.nested["losses"]["train"].append(loss.item())
        self.nested["sum"] += loss.detach()
        self.recent.append(loss.item())
        self.names.add(self.count)
        self.array += 1
        self.total += 1
        self.count += 1
        with torch.no_grad():
            self.teacher.weight.lerp_(self.network[0].weight, 0.1)
        self.teacher.bias.requires_grad_(self.count > 4)  # an epoch has three batches
        if self.logger is not None:
            self.logger.log_metrics({"direct": loss.item()}, step=self.count)
        if self.count > 1000:
            self.fresh = True
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def train_dataloader(self) -> Any:
        return DataLoader(
            Noisy(),
            batch_size=8,
            shuffle=True,
            generator=self.generator,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            multiprocessing_context="fork" if self.workers else None,
        )

    def val_dataloader(self) -> Any:
        return DataLoader(examples(), batch_size=8)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)


def plain(value: Any) -> Any:
    """A deep copy that compares by ``==``, bit by bit."""
    if isinstance(value, Tensor):
        return value.detach().numpy().tobytes(), value.requires_grad, tuple(value.shape)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, deque, set)):
        return type(value).__name__, [plain(item) for item in value]
    return value if isinstance(value, (int, float, str, type(None))) else type(value).__name__
