"""ImageClassifier: what it logs is what it says."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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
