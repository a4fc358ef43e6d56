"""An epoch of CIFAR-100's training batches, without a model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import v2

from _measuring import Results, timed
from lightning_opt.datamodules import CIFAR100

from .cifar import random_cifar100

BATCH = 128
WORKERS = 2
OURS = "lightning_opt"
PEERS = f"torchvision's v2 transforms, {WORKERS} workers", f"its first ones, {WORKERS} workers"


def images(options: argparse.Namespace) -> None:
    with random_cifar100() as root:
        module = CIFAR100(root, BATCH, validation=1)
        classic = CIFAR100(root, BATCH, validation=1, pipeline="torchvision")
        for data in (module, classic):
            data.setup("fit")
        loaders: dict[str, Callable[[], Iterable[Any]]] = {
            OURS: module.train_dataloader,
            PEERS[0]: lambda: _peer(root, _second()),
            PEERS[1]: lambda: _peer(root, _first()),
            f"lightning_opt, pipeline=torchvision, {WORKERS} workers": classic.train_dataloader,
        }
        measures = {name: _measure(loader()) for name, loader in loaders.items()}
        results = Results(measures, options.repeats)
    results.show(
        "An epoch: 50,000 images of 32 × 32, cropped, mirrored, normalized, in batches of 128",
        results.seconds,
        PEERS[0],
        [(OURS, 1 / 20, peer) for peer in PEERS],
    )


def _measure(loader: Iterable[Any]) -> Callable[[], float]:
    def epoch() -> None:
        for _ in loader:
            pass

    return lambda: timed(epoch)


def _peer(root: Path, transform: Callable[[Any], Any]) -> DataLoader[Any]:
    data = datasets.CIFAR100(root, transform=transform)
    return DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)


def _second() -> v2.Compose:
    return v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CIFAR100.mean, CIFAR100.std),
        ]
    )


def _first() -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(CIFAR100.mean, CIFAR100.std),
        ]
    )
