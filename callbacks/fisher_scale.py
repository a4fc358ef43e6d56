"""What KFAC has to know about the loss of each batch."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer

from ._batches import known_terms
from ._flavors import Callback


class FisherScale(Callback):
    """Tells :class:`~lightning_opt.optimizers.KFAC` what the loss of a batch is the mean of.

    KFAC's damping means the same at any batch size because it divides out the number of terms, and
    the factor that a gradient scaler puts on the loss. By itself it takes the examples as the
    terms; with this callback, those that the module says: its ``loss_terms(batch)`` if it has one,
    else the integer ``batch["labels"]`` that are not -100, such as masked tokens. The command line
    adds it by itself. It does nothing for other optimizers, or in manual optimization: call
    ``optimizer.describe_loss`` there.

    >>> import pytorch_lightning as pl
    >>> trainer = pl.Trainer(callbacks=[FisherScale()], logger=False)
    """

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.automatic_optimization:
            return
        for optimizer in trainer.optimizers:
            inner = getattr(optimizer, "base", optimizer)  # of Lookahead
            if hasattr(inner, "describe_loss"):
                scaler = getattr(trainer.precision_plugin, "scaler", None)
                factor = 1.0 if scaler is None else scaler.get_scale()
                inner.describe_loss(known_terms(pl_module, batch), factor)
