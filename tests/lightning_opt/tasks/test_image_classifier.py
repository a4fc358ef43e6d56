"""ImageClassifier: what it logs is what it says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_opt.callbacks import HessianSpectrum, LossSurface
from lightning_opt.datamodules import Digits
from lightning_opt.models import ShallowCNN
from lightning_opt.optimizers import KFAC
from lightning_opt.tasks import ImageClassifier

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def linear_task(**options) -> ImageClassifier:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    return ImageClassifier(network, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **options)


def uneven_batches() -> tuple[DataLoader, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    images, labels = torch.randn(7, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2, 1])
    return DataLoader(TensorDataset(images, labels), batch_size=5), images, labels


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_means_over_examples_not_over_batches(stage: str):
    task = linear_task()
    loader, images, labels = uneven_batches()
    trainer = Trainer(**QUIET)
    evaluate = trainer.validate if stage == "val" else trainer.test
    (metrics,) = evaluate(task, loader, verbose=False)
    logits = task(images)
    assert metrics[f"{stage}_loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert metrics[f"{stage}_accuracy"] == pytest.approx(accuracy)


def test_a_loss_that_is_nan_is_logged_as_nan():
    """A metric that drops NaN, as torchmetrics' MeanMetric does, would hide a diverged run."""
    task = linear_task()
    with torch.no_grad():
        task.network[1].weight.fill_(math.nan)
    (metrics,) = Trainer(**QUIET).validate(task, uneven_batches()[0], verbose=False)
    assert math.isnan(metrics["val_loss"])


def test_it_learns_the_digits():
    torch.manual_seed(0)
    task = ImageClassifier(ShallowCNN(), optimizer=lambda p: torch.optim.Adam(p, lr=3e-3))
    trainer = Trainer(max_epochs=6, **QUIET)
    trainer.fit(task, Digits())
    (metrics,) = trainer.test(task, Digits(), verbose=False)
    assert metrics["test_accuracy"] > 0.9


def test_predict_gives_a_class_an_image():
    loader, images, _ = uneven_batches()
    task = linear_task()
    predicted = torch.cat(Trainer(**QUIET).predict(task, loader))
    assert torch.equal(predicted, task(images).argmax(1))
    assert torch.equal(task.predict_step(images, 0), predicted)


def test_scheduler_is_used():
    task = linear_task(lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5))
    trainer = Trainer(max_epochs=2, **QUIET)
    trainer.fit(task, uneven_batches()[0], uneven_batches()[0])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.025


def test_terms_are_examples():
    batch = (torch.zeros(5, 1, 2, 2), torch.zeros(5, dtype=torch.long))
    assert linear_task().loss_terms(batch) == 5


def test_without_an_optimizer_it_says_how_to_give_one():
    with pytest.raises(ValueError, match=r"no optimizer: pass optimizer=.*--optimizer"):
        ImageClassifier(nn.Linear(4, 3)).configure_optimizers()


def test_a_network_without_linear_layer_needs_num_classes():
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten())
    with pytest.raises(ValueError, match=r"Sequential has no linear layer.*num_classes="):
        ImageClassifier(network)
    assert ImageClassifier(network, num_classes=3).val_accuracy.num_classes == 3


def test_kfac_draws_its_labels_from_the_model():
    """Which an optimizer cannot do by itself: without the task's help the first step fails."""

    def factor(fisher: str) -> torch.Tensor:
        task = linear_task()
        task._make_optimizer = lambda p: KFAC(p, task, fisher=fisher)
        loader, _, _ = uneven_batches()
        trainer = Trainer(max_steps=1, **QUIET)
        trainer.fit(task, loader, loader)
        (G,) = trainer.optimizers[0].state[task.network[1].weight]["G"]
        return G.squeeze(0)

    assert not torch.allclose(factor("sampled"), factor("empirical"))


class Outputs(NamedTuple):
    logits: torch.Tensor
    aux_logits2: torch.Tensor | None
    aux_logits1: torch.Tensor | None


class WithHeads(nn.Module):
    """As torchvision's GoogLeNet: two more heads in training mode, of which one may be absent."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(5, 3) for _ in range(heads))
        self.last = nn.Linear(5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor | Outputs:
        features = self.body(images)
        if not self.training:
            return self.last(features)
        heads = [head(features) for head in self.heads]
        return Outputs(self.last(features), *heads, *[None] * (2 - len(heads)))


@pytest.mark.parametrize("heads", [0, 1, 2])
def test_each_auxiliary_head_adds_two_fifths_of_its_loss_in_training(heads: int):
    task = ImageClassifier(WithHeads(heads))
    _, images, labels = uneven_batches()
    features = task.network.body(images)
    main = F.cross_entropy(task.network.last(features), labels)
    others = sum(F.cross_entropy(head(features), labels) for head in task.network.heads)
    torch.testing.assert_close(task.loss((images, labels)), main + 0.4 * others)
    assert torch.equal(task(images), task.network.last(features))
    torch.testing.assert_close(task.eval().loss((images, labels)), main)
    assert torch.equal(task(images), task.network.last(features))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_a_network_with_auxiliary_heads_trains_validates_and_is_looked_at(
    mode: str, fisher: str, tmp_path: Path
):
    task = ImageClassifier(WithHeads())
    task._make_optimizer = lambda p: KFAC(p, task, fisher=fisher)
    looks = [
        HessianSpectrum(mode=mode, steps=3, batches=1),
        LossSurface(mode=mode, resolution=(3, 3), batches=1),
    ]
    loader, images, labels = uneven_batches()
    before = [p.detach().clone() for p in task.parameters()]
    trainer = Trainer(max_epochs=2, callbacks=looks, default_root_dir=tmp_path, **QUIET)
    trainer.fit(task, loader, loader)
    for one, other in zip(before, task.parameters(), strict=True):
        assert not torch.equal(one, other)  # the heads too
    (metrics,) = Trainer(**QUIET).validate(task, loader, verbose=False)
    expected = F.cross_entropy(task.eval()(images), labels).item()
    assert metrics["val_loss"] == pytest.approx(expected)
    at_rest = task.train(mode == "train").loss((images[:5], labels[:5])).item()
    assert looks[1].result.values[1, 1] == pytest.approx(at_rest)


def ranks(folder: Path, devices: int) -> None:
    """Fits and validates on all processes, and leaves the metrics and weights of the first."""
    torch.manual_seed(0)
    network = ShallowCNN()
    task = ImageClassifier(network, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    data = Digits(batch_size=30 // devices)
    options = {"devices": devices, "max_epochs": 1, "limit_train_batches": 20}
    trainer = Trainer(
        **{**QUIET, **options},
        strategy="ddp" if devices > 1 else "auto",
        default_root_dir=folder,
    )
    trainer.fit(task, data)
    fitted = {name: float(value) for name, value in trainer.callback_metrics.items()}
    (validated,) = trainer.validate(task, data, verbose=False)
    (tested,) = trainer.test(task, data, verbose=False)
    if trainer.is_global_zero:
        results = {"fitted": fitted, "validated": validated, "tested": tested}
        (folder / f"{devices}.json").write_text(json.dumps(results))


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path: Path):
    """359 images for validation: 180 and 179, in batches of which the last ones are smaller."""
    # Lightning leaves a test's seed there, and a distributed run takes it.
    environment = {name: v for name, v in os.environ.items() if name != "PL_GLOBAL_SEED"}
    found = []
    for devices in (1, 2):
        command = [sys.executable, __file__, str(tmp_path), str(devices)]
        subprocess.run(command, check=True, timeout=300, env=environment)
        found.append(json.loads((tmp_path / f"{devices}.json").read_text()))
    one, two = found
    for stage in one:
        for name, value in one[stage].items():
            if name != "train_loss":  # of the last step, on one of the processes
                assert two[stage][name] == pytest.approx(value, rel=1e-5), (stage, name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks(Path(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # gloo's threads may abort an interpreter that ends in order
