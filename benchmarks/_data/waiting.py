"""The share of a ResNet18 training step, in a real fit, that is spent waiting for data."""

from __future__ import annotations

import argparse
import tempfile
from statistics import median

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import SimpleProfiler

from _tables import print_table, yes
from lightning_opt.datamodules import CIFAR100
from lightning_opt.models import ResNet18
from lightning_opt.tasks import ImageClassifier

from .cifar import random_cifar100

BATCH = 128
REACH = 0.01


def waiting(options: argparse.Namespace) -> None:
    with random_cifar100() as root:
        data = CIFAR100(root, BATCH)
        steps, waits = _fit(data, options.steps)
    shares = [wait / (wait + step) for step, wait in zip(steps, waits, strict=True)]
    print_table(
        f"ResNet18, {options.steps} steps of {BATCH} images of 32 × 32: medians",
        ["step", "waiting for a batch", "share", "to reach", "reached"],
        [
            [
                f"{1000 * median(steps):.4g} ms",
                f"{1000 * median(waits):.3g} ms",
                f"{100 * median(shares):.2g} %",
                f"≤ {100 * REACH:.0f} %",
                yes(median(shares) <= REACH),
            ]
        ],
    )


def _fit(data: CIFAR100, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each step, and before it for its batch, without the first, which warms up."""
    profiler = _Profiler()
    with tempfile.TemporaryDirectory() as folder:
        pl.Trainer(
            max_steps=steps + 1,
            limit_val_batches=0,
            profiler=profiler,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(ImageClassifier(ResNet18(num_classes=100), optimizer=torch.optim.SGD), data)
    taken = profiler.recorded_durations["run_training_batch"]
    waited = profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"]
    return taken[1:], waited[1 : len(taken)]


class _Profiler(SimpleProfiler):
    def describe(self) -> None:
        """Lightning's own table is not what is asked for."""
