"""The analysis of a module as it is, or of a checkpoint, without training."""

from __future__ import annotations

import os
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from ._analysis import Analysis
from ._flavors import Callback, trainer_class


def analyze(
    module: LightningModule,
    *analyses: Analysis,
    data: Any = None,
    ckpt_path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Trainer:
    """Runs analyses at the weights of ``module``, or of a checkpoint, as at the end of fit.

    It is a ``fit`` that ends before its first step, so that data, devices and precision are what
    they are in training. The command line has the same by ``lightning-opt validate`` with the
    callbacks in its configuration, for modules that have a ``validation_step``.

    Args:
        module: of any kind that a Trainer takes.
        analyses: each has its ``result`` afterwards, and its files in the run directory.
        data: the training data loader, or a datamodule; without it the module's own.
        ckpt_path: of a checkpoint of Lightning's, whose weights the module gets.
        options: of the Trainer: accelerator, devices, precision, default_root_dir, ...

    Returns:
        The trainer.

    Example:
        >>> from pytorch_lightning.demos.boring_classes import BoringModel
        >>> from lightning_opt.callbacks import LossSurface
        >>> class Boring(BoringModel):
        ...     def loss_terms(self, batch):
        ...         return len(batch)
        >>> surface = LossSurface(resolution=(3, 5))
        >>> _ = analyze(Boring(), surface, accelerator="cpu", enable_progress_bar=False)
        >>> surface.result.values.shape
        (3, 5)
    """
    loaded = None
    if ckpt_path is not None:
        loaded = torch.load(ckpt_path, map_location="cpu", weights_only=True)
    defaults = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    fixed = {"max_epochs": 1, "num_sanity_val_steps": 0}
    callbacks = [_AtOnce(loaded), *options.pop("callbacks", []), *analyses]
    trainer = trainer_class(module)(callbacks=callbacks, **{**defaults, **options, **fixed})
    source = "datamodule" if hasattr(data, "train_dataloader") else "train_dataloaders"
    trainer.fit(module, **{source: data})
    return trainer


class _AtOnce(Callback):
    """Gives the module the weights of a checkpoint, and ends the fit before its first step."""

    def __init__(self, checkpoint: dict[str, Any] | None) -> None:
        self._checkpoint = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not by fit's own ckpt_path, which wants optimizers and epochs to go on with.
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return
        pl_module.on_load_checkpoint(checkpoint)
        pl_module.load_state_dict(checkpoint["state_dict"])
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Analysis):
                callback.on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True
