"""KFAC's factors are those of the loss's own terms, whatever scaled the loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_opt.callbacks import FisherScale
from lightning_opt.optimizers import KFAC, Lookahead

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def batch(count: int = 4) -> dict[str, Tensor]:
    """Four sentences of five words, of which some are masked: the loss is the mean over those."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count, 5), generator=generator)
    labels[torch.rand(count, 5, generator=generator) < 0.6] = -100
    return {"words": torch.randn(count, 5, 2, generator=generator), "labels": labels}


class Masked(LightningModule):
    """The optimizer is made by ``build`` from the module."""

    def __init__(self, build: Any) -> None:
        super().__init__()
        self.build = build
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 3)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.layer(batch["words"])
        return cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    def configure_optimizers(self) -> Any:
        return self.build(self)


class Counting(Masked):
    """A module that says itself how many terms there are, here not what the labels say."""

    def loss_terms(self, batch: dict[str, Tensor]) -> int:
        return 7


def kfac(module: nn.Module) -> KFAC:
    return KFAC(module.parameters(), module)


def fit(module: Masked, callback: FisherScale) -> Tensor:
    """G of the only layer after one step."""
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch()], batch_size=None))
    optimizer = getattr(module.optimizers(), "base", module.optimizers())
    (G,) = optimizer.state[module.layer.weight]["G"]
    return G.squeeze(0)  # one block


def by_hand(terms: float) -> Tensor:
    """G = n Σ δ δᵀ over all words."""
    module = Masked(kfac)
    logits = module.layer(batch()["words"]).flatten(0, 1).detach().requires_grad_()
    cross_entropy(logits, batch()["labels"].flatten()).backward()
    assert logits.grad is not None
    return terms * logits.grad.T @ logits.grad


def test_terms_are_the_labels_that_count() -> None:
    masked = (batch()["labels"] != -100).sum().item()
    assert masked not in (4, 20)  # neither the sentences nor the words
    torch.testing.assert_close(fit(Masked(kfac), FisherScale()), by_hand(masked))


def test_terms_are_what_the_module_says() -> None:
    torch.testing.assert_close(fit(Counting(kfac), FisherScale()), by_hand(7))


def test_inside_of_lookahead() -> None:
    def build(module: nn.Module) -> Lookahead:
        return Lookahead(module.parameters(), KFAC).attach(module)

    torch.testing.assert_close(fit(Counting(build), FisherScale()), by_hand(7))


def test_without_either_the_terms_are_the_examples() -> None:
    class Renamed(Masked):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return super().training_step({**batch, "labels": batch["targets"]}, batch_idx)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return {"words": batch["words"], "targets": batch["labels"]}

    torch.testing.assert_close(fit(Renamed(kfac), FisherScale()), by_hand(4))


def test_scale_of_a_gradient_scaler_is_undone() -> None:
    """``16-mixed``, which Lightning has on GPUs only: the scaler's part of the trainer is here."""
    declared = []
    optimizer = SimpleNamespace(
        describe_loss=lambda terms, factor: declared.append((terms, factor))
    )
    trainer = SimpleNamespace(
        optimizers=[optimizer, torch.optim.SGD([nn.Parameter(torch.ones(1))])],
        precision_plugin=SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: 1024.0)),
    )
    FisherScale().on_train_batch_start(trainer, Counting(kfac), batch(), 0)  # type: ignore[arg-type]
    assert declared == [(7, 1024.0)]
