"""Two processes find what one finds on the union of their data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from classifier import Plain, examples, read
from lightning_opt.callbacks import (
    EvaluationWeights,
    HessianSpectrum,
    LossLine,
    LossSurface,
    TrainingCost,
)


class Shared(Plain):
    """Double precision, masked unevenly, with running statistics, in the order of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.network.insert(1, nn.BatchNorm1d(4, momentum=0.0))
        self.double()

    def loss_terms(self, batch: Any) -> int:
        return int((batch[1] != -100).sum())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.network(batch[0])
        right = (logits.argmax(dim=1) == batch[1])[batch[1] != -100].double().mean()
        self.log("accuracy", right)
        return F.cross_entropy(logits, batch[1])

    def train_dataloader(self) -> Any:
        x, y = examples().tensors
        y = y.clone()
        y[1:9:2] = -100  # all of these are the second process'
        data = TensorDataset(x[:16].double(), y[:16])
        world, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(data, world, rank, shuffle=False)
        return DataLoader(data, batch_size=4, sampler=sampler)

    def on_train_batch_end(self, *args: Any) -> None:
        """Running statistics that differ, as those of the ranks do after a step."""
        self.network[1].running_mean.fill_(0.1 * (1 - self.global_rank))

    def on_train_end(self) -> None:
        assert self.network[1].running_mean[0] == 0.1 * (1 - self.global_rank)


def train_shared(folder: Path, devices: int) -> None:
    """With a learning rate of 0, so that the weights are the same."""
    module = Shared()
    module.build.keywords["lr"] = 0.0
    folder = folder / str(devices)
    callbacks = [
        EvaluationWeights(),
        HessianSpectrum(steps=6, batches=8, every_n_epochs=1, probes=2),
        LossSurface(resolution=(3, 4), batches=8, metrics=["accuracy"]),
        LossSurface(resolution=(11, 11), batches=8, tolerance=0.3, name="adaptive"),
        LossLine(resolution=5, batches=8, start="new"),
        TrainingCost(),
    ]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module)


@pytest.mark.slow
def test_two_processes_are_as_one_on_the_union(tmp_path):
    tests = Path(__file__).parents[1]  # where `classifier` is; the checkout first, as in pytest
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    for devices in (1, 2):
        command = [sys.executable, __file__, str(tmp_path), str(devices)]
        subprocess.run(command, check=True, timeout=300, env=environment)
    names = {path.name for path in (tmp_path / "1").glob("*.npz")}
    assert names == {path.name for path in (tmp_path / "2").glob("*.npz")}
    assert len(names) == 7
    for name in names - {"cost.npz"}:
        one, two = (read(tmp_path / devices / name) for devices in "12")
        for key, value in one.items():
            if key in ("step", "steps"):  # each process has half of the batches
                continue
            if value.dtype.kind == "f":
                np.testing.assert_allclose(
                    two[key], value, rtol=1e-8, atol=1e-10, err_msg=f"{name} {key}"
                )
            else:
                np.testing.assert_array_equal(two[key], value, err_msg=f"{name} {key}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_shared(Path(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # gloo's threads may abort an interpreter that ends in order
