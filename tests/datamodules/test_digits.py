"""Digits: the split, and what a training loop sees of it."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits

from lightning_opt.callbacks import LossSurface
from lightning_opt.datamodules import Digits
from lightning_opt.models import ShallowCNN
from lightning_opt.tasks import ImageClassifier


def images(data: Digits, name: str) -> torch.Tensor:
    loader = getattr(data, f"{name}_dataloader")()
    return torch.cat([batch[0] for batch in loader])


def setup(**options) -> Digits:
    data = Digits(**options)
    data.setup()
    return data


def test_split_is_a_partition_of_the_real_images():
    data = setup()
    parts = [images(data, name) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [1079, 359, 359]
    together = torch.cat(parts).view(-1, 64)
    original = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    key = lambda rows: sorted(map(tuple, rows.tolist()))  # noqa: E731
    assert key(together) == key(original)


def test_every_part_has_each_class_in_proportion():
    data = setup()
    for name in ("train", "val", "test"):
        labels = torch.cat([batch[1] for batch in getattr(data, f"{name}_dataloader")()])
        shares = torch.bincount(labels, minlength=10) / len(labels)
        assert (shares - 0.1).abs().max() < 0.01


def test_split_depends_on_its_own_seed_only():
    torch.manual_seed(1)
    first = images(setup(), "test")
    torch.manual_seed(2)
    assert torch.equal(images(setup(), "test"), first)
    assert not torch.equal(images(setup(split_seed=1), "test"), first)


class Watcher(LightningModule):
    """Keeps the labels that it is trained on, an epoch a list."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: list[list[int]] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch, batch_idx):
        self.epochs[-1] += batch[1].tolist()
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def quiet_trainer(**options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def labels_seen(seed: int) -> list[list[int]]:
    seed_everything(seed)
    watcher = Watcher()
    quiet_trainer(max_epochs=3).fit(watcher, Digits())
    return watcher.epochs


def test_order_follows_the_seed_of_the_run_and_changes_every_epoch():
    first = labels_seen(seed=0)
    assert [len(epoch) for epoch in first] == [1079] * 3
    assert first[0] != first[1] != first[2]
    assert labels_seen(seed=0) == first
    assert labels_seen(seed=1) != first


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size >= 1, got 0"),
        ({"validation": 0.0}, "validation=0.0"),
        ({"validation": 0.6, "test": 0.4}, "sum below 1, got validation=0.6, test=0.4"),
    ],
)
def test_options_out_of_range_are_named(options, words: str):
    with pytest.raises(ValueError, match=words):
        Digits(**options)


def test_analysis_callbacks_see_the_same_images_in_every_run():
    """Minima of runs that differ in seed and length are compared on the same data."""

    def images_taken(seed: int, epochs: int) -> torch.Tensor:
        seen = []

        def loss(module, batch):
            seen.append(batch[0])
            return module.loss(batch)

        seed_everything(seed)
        surface = LossSurface(loss=loss, batches=2, resolution=(2, 2))
        trainer = quiet_trainer(
            max_epochs=epochs, limit_train_batches=3, limit_val_batches=0, callbacks=[surface]
        )
        surface._write = lambda *args: None  # what it saw is enough
        trainer.fit(ImageClassifier(ShallowCNN(), optimizer=torch.optim.SGD), Digits())
        return torch.cat(seen[:2])

    first = images_taken(seed=0, epochs=1)
    assert torch.equal(images_taken(seed=1, epochs=1), first)
    assert torch.equal(images_taken(seed=0, epochs=2), first)
