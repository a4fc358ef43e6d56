"""What the callbacks add to the numerics: batches, remembering, files, figures."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from _tables import print_table, say, yes
from lightning_opt.callbacks import HessianSpectrum, LossSurface
from lightning_opt.callbacks import hessian_spectrum as spectrum_file
from lightning_opt.callbacks import loss_surface as surface_file

from .problem import Batch, Problem, random_batch


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.problem = [Problem()]
        self.network = self.problem[0].network

    def loss_terms(self, batch: Batch) -> int:
        return len(batch[1])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.problem[0].loss(batch)

    def train_dataloader(self) -> Any:
        return DataLoader([random_batch(0)], batch_size=None)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def callback(options: argparse.Namespace) -> None:
    rows = []
    for name, analysis, files in (
        ("HessianSpectrum, 100 steps", HessianSpectrum(batches=1), (spectrum_file, "spectrum")),
        (
            "LossSurface, 25 × 25",
            LossSurface(batches=1, resolution=(25, 25)),
            (surface_file, "plane"),
        ),
    ):
        say(name)
        whole, numerics = _seconds(analysis, *files)
        own = (whole - numerics) / numerics
        rows.append(
            [name, f"{numerics:.1f} s", f"{whole - numerics:.2f} s", f"{100 * own:.2f} %", "≤ 2 %",
             yes(own <= 0.02)]
        )  # fmt: skip
    print_table(
        "Callbacks at the end of fit, ResNet18, 32 images",
        ["", "numerics", "the rest", "share", "to reach", "reached"],
        rows,
    )


def _seconds(analysis: pl.Callback, file: Any, function: str) -> tuple[float, float]:
    numerics: list[float] = []
    original: Callable[..., Any] = getattr(file, function)

    def measured(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            numerics.append(time.perf_counter() - start)

    hook = analysis.on_train_end
    spent: list[float] = []

    def timed_hook(*args: Any) -> None:
        start = time.perf_counter()
        hook(*args)
        spent.append(time.perf_counter() - start)

    setattr(file, function, measured)
    analysis.on_train_end = timed_hook  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            pl.Trainer(
                max_steps=1,
                accelerator="cpu",
                callbacks=[analysis],
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(Module())
    finally:
        setattr(file, function, original)
    return sum(spent), sum(numerics)
