"""Image classification: any network, cross entropy, accuracy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_opt.errors import UsageError

from ._mean_loss import MeanLoss
from ._task import MakeLRScheduler, MakeOptimizer, Task

Batch = tuple[Tensor, Tensor]

# What the loss of each auxiliary head counts: Inception v3's 0.4.
_AUXILIARY = 0.4


class ImageClassifier(Task):
    """Trains a network on images with one label each.

    Logged are ``train_loss`` (every step) and, for ``val`` and ``test``, ``{stage}_loss`` and
    ``{stage}_accuracy``, both means over examples, exact over batches of different sizes and ranks.

    Args:
        network: Maps images to logits; in training it may return a tuple, of these and of the
            logits of auxiliary heads (or None), as torchvision's Inception and GoogLeNet do.
        num_classes: Number of classes; found from the network's last linear layer if left out.
        optimizer: Makes the optimizer from the parameters. Left out where LightningCLI's
            ``--optimizer`` gives it.
        lr_scheduler: Makes a scheduler, stepped per epoch, from the optimizer.
        channels_last: Keep images and convolutions in memory with the channels last, which GPUs
            are faster with in reduced precision. Nothing else changes.
        compile: Whether ``torch.compile`` compiles the network, in place. K-FAC is refused then.

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
        optimizer: MakeOptimizer | None = None,
        lr_scheduler: MakeLRScheduler | None = None,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(network, optimizer, lr_scheduler, compile)
        self._channels_last = channels_last
        if channels_last:
            network.to(memory_format=torch.channels_last)
        classes = num_classes if num_classes is not None else _outputs(network)
        self.val_loss, self.test_loss = MeanLoss(), MeanLoss()
        self.val_accuracy, self.test_accuracy = _accuracy(classes), _accuracy(classes)

    def forward(self, images: Tensor) -> Tensor:
        return self._outputs(images)[0]

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy in nats over the batch, and 0.4 of that of each auxiliary head."""
        images, labels = batch
        logits, *auxiliary = self._outputs(images)
        self._show_logits(logits)
        loss = F.cross_entropy(logits, labels)
        for head in auxiliary:
            loss = loss + _AUXILIARY * F.cross_entropy(head, labels)
        return loss

    def loss_terms(self, batch: Batch) -> int:
        """Number of examples that :meth:`loss` is the mean of."""
        return batch[1].numel()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_loss, self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_loss, self.test_accuracy)

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """The most likely class of each image, ``(batch,)``; labels are not read."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        classes: Tensor = self(images).argmax(dim=1)
        return classes

    def _outputs(self, images: Tensor) -> list[Tensor]:
        """The logits, and those of the auxiliary heads where the network gives them."""
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        output = self.network(images)
        outputs = output if isinstance(output, tuple) else (output,)
        return [logits for logits in outputs if logits is not None]

    def _evaluate(
        self, batch: Batch, stage: str, loss: MeanLoss, accuracy: MulticlassAccuracy
    ) -> None:
        images, labels = batch
        logits = self(images)
        loss.update(F.cross_entropy(logits, labels, reduction="sum"), labels.numel())
        accuracy.update(logits, labels)
        self.log_dict({f"{stage}_loss": loss, f"{stage}_accuracy": accuracy}, prog_bar=True)


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
