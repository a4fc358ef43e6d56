"""What Lightning's Trainer adds to a step, beside a bare loop over the same batches."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from _measuring import Goal, Results
from lightning_opt.models import ResNet18, ShallowCNN
from lightning_opt.tasks import ImageClassifier

BARE, PLAIN, OURS = "bare loop", "plain LightningModule", "ImageClassifier"
Batch = tuple[Tensor, Tensor]

LOGGING: dict[str, dict[str, Any]] = {
    "logging off": {"barebones": True},
    "logged to a file": {"enable_checkpointing": False, "enable_progress_bar": False},
}


def lightning(options: argparse.Namespace) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    # Of them, that a barebones trainer does not log.
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    digits = _batches(400, 64, (1, 8, 8), 10)
    _measure(options, ShallowCNN, digits, "logging off", [(OURS, 1.35, BARE)])
    _measure(options, ShallowCNN, digits, "logged to a file", [(OURS, 1.1, PLAIN)])
    pictures = _batches(options.steps, 32, (3, 32, 32), 100)
    _measure(options, ResNet18, pictures, "logged to a file", [(OURS, 1.02, BARE)])


def _measure(
    options: argparse.Namespace,
    network: Callable[[], nn.Module],
    batches: Sequence[Batch],
    logged: str,
    goals: Sequence[Goal],
) -> None:
    trainer = LOGGING[logged]
    results = Results(
        {
            BARE: lambda: _bare(network(), batches),
            PLAIN: lambda: _trained(Plain(network()), batches, trainer),
            OURS: lambda: _trained(
                ImageClassifier(network(), optimizer=_optimizer), batches, trainer
            ),
        },
        options.repeats,
    )
    title = f"A step on {network.__name__}, {len(batches[0][0])} images, {logged}"
    results.show(title, results.seconds, BARE, goals)


def _batches(count: int, size: int, shape: Sequence[int], classes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, *shape, generator=generator),
            torch.randint(classes, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def _optimizer(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01, momentum=0.9)


def _loader(batches: Sequence[Batch]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def _bare(network: nn.Module, batches: Sequence[Batch]) -> float:
    """Seconds a step."""
    optimizer = _optimizer(network.train().parameters())
    start = 0.0
    for step, (images, labels) in enumerate(_loader(batches)):
        if step == 1:  # as for the others, the first is a warm-up
            start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return (time.perf_counter() - start) / (len(batches) - 1)


class Plain(LightningModule):
    """What a user would write for the same step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return _optimizer(self.parameters())


class Clock(Callback):
    """Seconds from the second batch to the end of the epoch."""

    seconds = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        if args[-1] == 0:
            self.seconds = -time.perf_counter()

    def on_train_epoch_end(self, *args: Any) -> None:
        self.seconds += time.perf_counter()


def _trained(module: LightningModule, batches: Sequence[Batch], options: dict[str, Any]) -> float:
    """Seconds a step."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_val_batches=0,
            enable_model_summary=False,
            default_root_dir=folder,
            logger=False if "barebones" in options else CSVLogger(folder),
            **options,
        )
        trainer.callbacks.append(clock := Clock())  # type: ignore[attr-defined]
        trainer.fit(module, _loader(batches))
    return clock.seconds / (len(batches) - 1)
