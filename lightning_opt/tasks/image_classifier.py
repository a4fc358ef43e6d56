"""Image classification: any network, cross entropy, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from lightning_opt.errors import UsageError

Batch = tuple[Tensor, Tensor]


class ImageClassifier(LightningModule):
    """Trains a network on images with one label each.

    Logged are ``train_loss`` (every step) and, for ``val`` and ``test``, ``{stage}_loss`` and
    ``{stage}_accuracy``, both means over examples, exact over batches of different sizes.

    Args:
        network: Maps images to logits.
        num_classes: Number of classes; found from the network's last linear layer if left out.
        optimizer: Makes the optimizer from the parameters. Left out where LightningCLI's
            ``--optimizer`` gives it.
        lr_scheduler: Makes a scheduler, stepped per epoch, from the optimizer.

    Raises:
        UsageError: ``num_classes`` was left out and the network has no linear layer.

    Shape:
        A batch is ``(images, labels)``: images as the network takes them, labels ``(batch,)`` of
        integers in ``[0, num_classes)``.

    >>> import torch
    >>> from lightning_opt.models import ShallowCNN
    >>> task = ImageClassifier(ShallowCNN(), optimizer=torch.optim.SGD)
    >>> task.loss((torch.zeros(2, 1, 8, 8), torch.tensor([3, 7]))).shape
    torch.Size([])
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int | None = None,
        optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._make_optimizer = optimizer
        self._make_lr_scheduler = lr_scheduler
        classes = num_classes if num_classes is not None else _outputs(network)
        self.val_accuracy, self.test_accuracy = _accuracy(classes), _accuracy(classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy in nats over the batch."""
        images, labels = batch
        logits = self(images)
        self._show_logits(logits)
        return F.cross_entropy(logits, labels)

    def loss_terms(self, batch: Batch) -> int:
        """Number of examples that :meth:`loss` is the mean of."""
        return batch[1].numel()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_accuracy)

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """The most likely class of each image, ``(batch,)``; labels are not read."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        classes: Tensor = self(images).argmax(dim=1)
        return classes

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self._make_optimizer is None:
            raise UsageError(
                "ImageClassifier has no optimizer: pass optimizer=, for instance "
                "ImageClassifier(network, optimizer=torch.optim.Adam), or --optimizer on the "
                "command line (or a shipped one: --config adam)."
            )
        optimizer = self._make_optimizer(self.parameters())
        if self._make_lr_scheduler is None:
            return optimizer
        return [optimizer], [self._make_lr_scheduler(optimizer)]

    def _show_logits(self, logits: Tensor) -> None:
        """Lets an optimizer that takes the Fisher's labels from the model draw them."""
        trainer = self._trainer
        for optimizer in trainer.optimizers if trainer is not None and self.training else []:
            inner: Any = getattr(optimizer, "base", optimizer)  # of Lookahead
            if getattr(inner, "fisher", None) == "sampled":
                inner.sample(logits)

    def _evaluate(self, batch: Batch, stage: str, accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        logits = self(images)
        accuracy.update(logits, labels)
        # Lightning's own mean, weighted by batch size and synchronized, because torchmetrics'
        # MeanMetric either drops NaN, which hides a diverged run, or drops the weights.
        self.log(
            f"{stage}_loss",
            F.cross_entropy(logits, labels),
            batch_size=labels.numel(),
            sync_dist=True,
            prog_bar=True,
        )
        self.log(f"{stage}_accuracy", accuracy, prog_bar=True)


def _accuracy(classes: int) -> MulticlassAccuracy:
    # Cross entropy checks the labels already; torchmetrics would do so again, with a device
    # synchronization a batch. It starts at two classes.
    return MulticlassAccuracy(max(classes, 2), average="micro", validate_args=False)


def _outputs(network: nn.Module) -> int:
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UsageError(
            f"{type(network).__name__} has no linear layer to read the number of classes from: "
            "pass num_classes= to ImageClassifier."
        )
    return linear[-1].out_features
