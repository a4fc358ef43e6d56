"""The first steps of the two large tasks, on real images and texts in the true formats.

The images are scikit-learn's digits, enlarged and written as CIFAR-100's files; the text is the
language reference inside Python, written as WikiText-103's.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics
from statistics import mean
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from pytorch_lightning import Callback, LightningModule, Trainer
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torchvision import datasets

from _data.cifar import write_pickle
from _tables import print_table, say
from lightning_opt.configs import resolve
from lightning_opt.lightning_cli import OptLightningCLI

STEPS, SHOWN = 50, 10


def first_steps(options: argparse.Namespace) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|jsonargparse")
    disable_progress_bars()
    rows = []
    with _digits_as_cifar100() as root:
        rows.append(_row("cifar100_resnet18", root, []))
    with _reference_as_wikitext() as root:
        text = ["--data.tokenizer", "null", "--data.vocab_size", "4096", "--data.batch_size", "8"]
        rows.append(_row("wikitext103_roberta", root, text))
    spans = [f"{end - SHOWN + 1} to {end}" for end in range(SHOWN, STEPS + 1, SHOWN)]
    print_table("Mean training loss of the first steps, Adam", ["task", *spans], rows)


class _Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.values.append(float(outputs["loss"]))
        say(f"step {len(self.values)}: {self.values[-1]:.3f}")


def _row(task: str, root: Path, data: Sequence[str]) -> list[str]:
    say(task)
    losses = _Losses()
    arguments = ["fit", "--data.root", str(root), *data, "--optimizer.lr", "3e-4"]
    for kind, name in (("tasks", task), ("optimizers", "adam")):
        arguments[1:1] = ["--config", str(resolve(kind, name))]  # type: ignore[arg-type]
    OptLightningCLI(
        arguments,
        save_config_callback=None,
        trainer_overrides={
            "callbacks": [losses],
            "max_steps": STEPS,
            "max_epochs": -1,
            "limit_val_batches": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    )
    means = [mean(losses.values[end - SHOWN : end]) for end in range(SHOWN, STEPS + 1, SHOWN)]
    return [task, *(f"{value:.3f}" for value in means)]


@contextmanager
def _digits_as_cifar100() -> Iterator[Path]:
    of = datasets.CIFAR100
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels * (255 / 16)).view(-1, 1, 8, 8)
    large = F.interpolate(images, scale_factor=4, mode="bilinear").expand(-1, 3, -1, -1)
    content = {"data": large.byte().flatten(1).numpy(), "fine_labels": labels.tolist()}
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / of.base_folder
        files.mkdir()
        # More than the 5,000 that are held out for validation.
        several = {name: [*values] * 6 for name, values in content.items()}
        names = {"fine_label_names": [str(label) for label in range(100)]}
        of.meta = {**of.meta, "md5": write_pickle(files / "meta", names)}
        of.train_list = [["train", write_pickle(files / "train", several)]]
        of.test_list = [["test", write_pickle(files / "test", content)]]
        yield Path(folder)


@contextmanager
def _reference_as_wikitext() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "wikitext-103-raw-v1"
        files.mkdir()
        texts = [text for _, text in sorted(topics.items())]
        parts = {"train": texts[20:], "validation": texts[:10], "test": texts[10:20]}
        for name, part in parts.items():
            rows = []
            for number, text in enumerate(part):
                lines = [f" {' '.join(line.split())} \n" for line in text.split("\n\n")]
                rows += ["", f" = Topic {number} = \n", "", *lines]
            Dataset.from_dict({"text": rows}).to_parquet(
                str(files / f"{name}-00000-of-00001.parquet")
            )
        yield Path(folder)
